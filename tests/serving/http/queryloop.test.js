// The snippet in Node, on a collector and a clock of its own: `node --test tests/serving/http/`.
"use strict";
const test = require("node:test");
const assert = require("node:assert/strict");
const http = require("node:http");
const path = require("node:path");

const Queryloop = require(path.join(__dirname, "../../../serving/http/browser/queryloop.js"));

/* A collector that answers with the given statuses in turn (202 when they run out) and keeps what it was sent. */
async function collector(t, statuses = [], headers = {}) {
  const seen = { requests: [], events: new Map() };
  const server = http.createServer((request, response) => {
    let body = "";
    request.on("data", (chunk) => (body += chunk));
    request.on("end", () => {
      const status = statuses.length ? statuses.shift() : 202;
      const lines = body.split("\n").map((line) => JSON.parse(line));
      seen.requests.push({ url: request.url, type: request.headers["content-type"], lines, bytes: Buffer.byteLength(body), status });
      if (status === 202) for (const event of lines) seen.events.set(event.event_id, event);
      response.writeHead(status, { "Content-Type": "application/json", ...headers });
      response.end(JSON.stringify({ accepted: lines.length, rejected: [] }));
    });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => server.close() && server.closeAllConnections());
  seen.url = `http://127.0.0.1:${server.address().port}`;
  return seen;
}

function memory() {
  const kept = new Map();
  return { getItem: (key) => kept.get(key) ?? null, setItem: (key, value) => kept.set(key, value), removeItem: (key) => kept.delete(key), kept };
}

function quiet(t) {
  t.mock.method(console, "warn", () => {});
}

test("queries, impressions and clicks arrive as the schema wants them, in order, in one request", async (t) => {
  const seen = await collector(t);
  const loop = Queryloop.connect({ url: seen.url + "/", writeKey: "a key&b", userId: "u1" });
  loop.query("lisbon");
  const shown = loop.impression("lisbon", ["lisbon weather", "lisbon museums"], { task: "suggest" });
  loop.click(shown, 1);
  assert.equal(await loop.flush(), true);
  assert.equal(seen.requests.length, 1);
  const [{ url, type, lines }] = seen.requests;
  assert.equal(url, "/v1/events?write_key=a%20key%26b");
  assert.equal(type, "text/plain");
  assert.deepEqual(lines.map((event) => event.type), ["query", "impression", "click"]);
  assert.equal(new Set(lines.map((event) => event.event_id)).size, 3);
  assert.equal(new Set(lines.map((event) => event.session_id)).size, 1);
  const [query, impression, click] = lines;
  assert.ok(Math.abs(query.ts - Date.now() / 1000) < 60);
  assert.deepEqual([impression.items, impression.task, impression.user_id], [["lisbon weather", "lisbon museums"], "suggest", "u1"]);
  assert.deepEqual([click.impression_id, click.position, click.item, click.query], [shown, 1, "lisbon museums", "lisbon"]);
  assert.deepEqual(loop.counters(), { queued: 0, emitted: 3, delivered: 3, refused: 0, dropped: 0, beacons: 0, retries: 0 });
});

test("a full batch goes at once, the rest after the interval", async (t) => {
  const seen = await collector(t);
  const loop = Queryloop.connect({ url: seen.url, batch: 2, intervalMs: 20, storage: null });
  for (const text of ["a", "b", "c"]) loop.query(text);
  await until(() => seen.events.size === 3);
  assert.deepEqual(seen.requests.map((request) => request.lines.length), [2, 1]);
});

test("what a busy or broken collector did not take is sent again with the same ids, in order", async (t) => {
  const seen = await collector(t, [503, 500, 429]);
  const loop = Queryloop.connect({ url: seen.url, retryMs: 5, storage: null });
  const ids = ["a", "b"].map((text) => loop.query(text));
  assert.equal(await loop.flush(), false);
  await until(() => seen.events.size === 2);
  assert.deepEqual(seen.requests.map((request) => request.status), [503, 500, 429, 202]);
  for (const { lines } of seen.requests) assert.deepEqual(lines.map((event) => event.event_id), ids);
  assert.equal(loop.counters().retries, 3);
});

test("the pause before the next try is what the collector asked for, and doubles otherwise up to its limit", () => {
  const loop = Queryloop.connect({ url: "http://127.0.0.1:9", storage: null, retryMs: 100, maxRetryMs: 800 });
  const pauses = [1, 2, 3, 4, 9].map((failures) => {
    loop.failures = failures;
    return loop.pause();
  });
  [100, 200, 400, 800, 800].forEach((most, i) => assert.ok(pauses[i] >= most / 2 && pauses[i] <= most, `${i}: ${pauses[i]}`));
  loop.wait = 5000;
  assert.equal(loop.pause(), 5000);
});

test("a batch that is too large is halved until it passes", async (t) => {
  const seen = await collector(t, [413, 413]);
  const loop = Queryloop.connect({ url: seen.url, batch: 8, storage: null });
  loop.failures = 1; // keep the eighth event from flushing by itself
  for (let i = 0; i < 8; i += 1) loop.query("q" + i);
  loop.failures = 0;
  await loop.flush();
  await until(() => seen.events.size === 8);
  assert.deepEqual(seen.requests.map((request) => request.lines.length), [8, 4, 2, 2, 2, 2]);
});

test("no request is larger than its bytes, counted in UTF-8", async (t) => {
  const seen = await collector(t);
  const loop = Queryloop.connect({ url: seen.url, maxBytes: 700, storage: null });
  for (let i = 0; i < 6; i += 1) loop.query("ü".repeat(100));
  await loop.flush();
  assert.equal(seen.events.size, 6);
  assert.ok(Math.max(...seen.requests.map((request) => request.bytes)) <= 700);
});

test("beyond its bound the oldest events are dropped and counted", async (t) => {
  const seen = await collector(t);
  const loop = Queryloop.connect({ url: seen.url, maxQueued: 3, storage: null });
  const ids = ["a", "b", "c", "d", "e"].map((text) => loop.query(text));
  await loop.flush();
  assert.deepEqual([...seen.events.keys()], ids.slice(2));
  assert.equal(loop.counters().dropped, 2);
});

test("what one page could not send the next one sends, whatever lies in storage", async (t) => {
  const storage = memory();
  const away = Queryloop.connect({ url: "http://127.0.0.1:9", storage, retryMs: 60000 });
  const id = away.query("kept");
  assert.equal(await away.flush(), false);
  const seen = await collector(t);
  Queryloop.connect({ url: seen.url, storage });
  await until(() => seen.events.has(id));
  await until(() => storage.getItem("queryloop.queue") === null);
  storage.setItem("queryloop.queue", "{broken");
  storage.setItem("queryloop.session", "[");
  Queryloop.connect({ url: seen.url, storage }).query("x");
});

test("storage that fails is done without", async (t) => {
  const seen = await collector(t);
  const storage = { getItem: () => null, removeItem: () => {}, setItem: () => { throw new Error("quota"); } };
  const loop = Queryloop.connect({ url: seen.url, storage });
  loop.query("a");
  await loop.flush();
  assert.equal(seen.events.size, 1);
});

test("a session lasts as long as its events keep coming", (t) => {
  t.mock.timers.enable({ apis: ["Date"], now: 1000 });
  const loop = Queryloop.connect({ url: "http://127.0.0.1:9", storage: memory(), sessionGapMs: 1000 });
  const first = loop.session();
  t.mock.timers.setTime(1900);
  assert.equal(loop.session(), first);
  t.mock.timers.setTime(2899);
  assert.equal(loop.session(), first);
  t.mock.timers.setTime(3900);
  assert.notEqual(loop.session(), first);
});

test("events that no collector would take are refused here, and the page goes on", async (t) => {
  quiet(t);
  const seen = await collector(t);
  const loop = Queryloop.connect({ url: seen.url, maxBytes: 400, storage: null });
  assert.equal(loop.query("  "), null);
  assert.equal(loop.query(undefined), null);
  assert.equal(loop.query("x".repeat(500)), null);
  assert.equal(loop.click("unknown", 0), null);
  assert.equal(await loop.flush(), true);
  assert.equal(seen.requests.length, 0);
  assert.equal(loop.counters().refused, 4);
});

test("a wrong key keeps the events, and what the collector refuses for good is counted", async (t) => {
  quiet(t);
  const seen = await collector(t, [401, 422]);
  const loop = Queryloop.connect({ url: seen.url, storage: null });
  loop.query("a");
  assert.equal(await loop.flush(), false);
  assert.equal(loop.counters().queued, 1);
  assert.equal(await loop.flush(), true);
  assert.deepEqual([loop.counters().queued, loop.counters().refused], [0, 1]);
});

test("a url that is none is said at once", () => {
  assert.throws(() => Queryloop.connect({ url: "collector.example" }), /url must begin with/);
});

async function until(holds) {
  for (let i = 0; i < 500; i += 1) {
    if (holds()) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert.fail("did not happen within 5 s");
}

test("a click has the session of its list: after 30 minutes, after a login, and on another page", async (t) => {
  const seen = await collector(t);
  const storage = memory();
  t.mock.timers.enable({ apis: ["Date"], now: 1767607200000 });
  const loop = Queryloop.connect({ url: seen.url, storage });
  const shown = loop.impression("later", ["a", "b"]);
  t.mock.timers.tick(31 * 60 * 1000);
  loop.click(shown, 0);
  loop.query("a new session");
  const loggedIn = Queryloop.connect({ url: seen.url, storage, sessionId: "user-7" });
  loggedIn.click(shown, 1, { session_id: "user-7" });
  loggedIn.query("logged in");
  await loop.flush();
  await loggedIn.flush();
  const events = [...seen.events.values()];
  const [list] = events.filter((event) => event.type === "impression");
  const clicks = events.filter((event) => event.type === "click");
  assert.deepEqual(clicks.map((event) => event.session_id), [list.session_id, list.session_id]);
  assert.deepEqual(clicks.map((event) => event.item), ["a", "b"]);
  const queries = new Map(events.filter((event) => event.type === "query").map((event) => [event.query, event.session_id]));
  assert.notEqual(queries.get("a new session"), list.session_id);
  assert.equal(queries.get("logged in"), "user-7");
});

test("another page of the site knows the session of a list from storage, and many lists stay bounded", async (t) => {
  const storage = memory();
  storage.setItem("queryloop.lists", JSON.stringify([["constructor", "s0"], ["elsewhere", "s1"], [1, 2], null]));
  const seen = await collector(t);
  const loop = Queryloop.connect({ url: seen.url, storage });
  loop.click("elsewhere", 0, { query: "q" });
  storage.setItem("queryloop.lists", JSON.stringify([["elsewhere", "s1"]]));
  loop.click("elsewhere", 0, { query: "q" });
  loop.click("__proto__", 0, { query: "q", session_id: "own" });
  for (let number = 0; number < 230; number += 1) loop.remember("list-" + number, { session: "s" + number, query: "q", items: [] });
  loop.click("list-40", 0, { query: "q" });
  await loop.flush();
  const clicks = [...seen.events.values()].filter((event) => event.type === "click");
  const current = JSON.parse(storage.getItem("queryloop.session")).id;
  assert.deepEqual(clicks.map((event) => event.session_id), [current, "s1", "own", "s40"]);
  assert.equal(JSON.parse(storage.getItem("queryloop.lists")).length, 200);
});

test("clicks on a list that the recommender answered need no more than its answer", async (t) => {
  const seen = await collector(t);
  const loop = Queryloop.connect({ url: seen.url, storage: null });
  const shown = loop.recommended("lisbon", { impression_id: "L", session_id: "s9", items: ["a", "b"] });
  loop.click(shown, 1);
  await loop.flush();
  const [click, ...others] = [...seen.events.values()];
  assert.equal(others.length, 0);
  assert.deepEqual([click.type, click.impression_id, click.session_id, click.query, click.item], ["click", "L", "s9", "lisbon", "b"]);
});
