/* Queryloop events from a web page: queries, impressions and clicks, in batches, sent again until they are accepted.
 *
 *   <script src="https://collector.example/v1/queryloop.js"></script>
 *   <script>
 *     const loop = Queryloop.connect({ url: "https://collector.example", writeKey: "..." });
 *     loop.query("lisbon");
 *     const shown = loop.impression("lisbon", ["lisbon weather", "lisbon museums"]);
 *     loop.click(shown, 1);
 *   </script>
 *
 * An event gets its id and time when it happens, so that sending it twice counts once. Nothing here throws into the page: what
 * cannot be sent is counted (`counters()`) and logged to the console. Also runs in Node 18 or later, without storage.
 */
(function (root, factory) {
  "use strict";
  const api = factory(root);
  if (typeof module === "object" && module.exports) module.exports = api;
  else root.Queryloop = api;
})(typeof globalThis === "object" ? globalThis : this, function (root) {
  "use strict";

  const DEFAULTS = {
    batch: 50, // events in one request, at most
    intervalMs: 2000, // an event waits this long for others, at most
    maxQueued: 1000, // events kept; beyond it the oldest are dropped
    maxBytes: 60000, // bytes of one request: browsers refuse beacons over 64 KiB
    retryMs: 1000, // first pause after a failure; doubled each time, with jitter
    maxRetryMs: 60000,
    sessionGapMs: 30 * 60 * 1000, // silence after which a new session begins
  };
  const QUEUE = "queryloop.queue";
  const SESSION = "queryloop.session";
  const LISTS = "queryloop.lists";
  const MAX_LISTS = 200;
  const shown = new Map(); // lists of this page by impression id, whichever connection showed them

  function makeId() {
    const bytes = root.crypto.getRandomValues(new Uint8Array(16));
    return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  function byteLength(text) {
    return new TextEncoder().encode(text).length;
  }

  /* localStorage, or nothing where the browser forbids it (private windows, sandboxed frames). */
  function findStorage() {
    try {
      const storage = root.localStorage;
      storage.setItem("queryloop.probe", "1");
      storage.removeItem("queryloop.probe");
      return storage;
    } catch (error) {
      return null;
    }
  }

  class Connection {
    constructor(options) {
      const url = String(options.url || "").replace(/\/+$/, "");
      if (!/^https?:\/\//.test(url)) throw new TypeError("Queryloop.connect: url must begin with http:// or https://");
      this.options = Object.assign({}, DEFAULTS, options);
      this.target = url + "/v1/events" + (options.writeKey ? "?write_key=" + encodeURIComponent(options.writeKey) : "");
      this.storage = options.storage === undefined ? findStorage() : options.storage;
      this.count = { emitted: 0, delivered: 0, refused: 0, dropped: 0, beacons: 0, retries: 0 };
      this.queue = [];
      this.sending = null;
      this.timer = null;
      this.failures = 0;
      this.recover();
      if (root.document && root.addEventListener) this.watchPage();
    }

    /* A query that the user typed; `source: "recommendation"` when a click on a recommendation produced it. */
    query(text, more) {
      return this.emit({ type: "query", query: text }, more);
    }

    /* A list that was shown. Returns its impression id, for `click`. */
    impression(query, items, more) {
      const id = (more && more.impression_id) || makeId();
      const session = (more && more.session_id) || this.sessionId();
      this.remember(id, { session: session, query: query, items: Array.from(items) });
      this.emit({ type: "impression", impression_id: id, query: query, items: Array.from(items), session_id: session }, more);
      return id;
    }

    /* A list that POST /v1/recommend answered: its impression is counted already, its clicks are to be sent. Returns its id. */
    recommended(query, answer) {
      const session = answer.session_id || this.sessionId();
      this.remember(answer.impression_id, { session: session, query: query, items: Array.from(answer.items) });
      return answer.impression_id;
    }

    /* A click on the item at `position` (from 0). For a list that was not shown by this page give `query` (and `item`). */
    click(impressionId, position, more) {
      const list = shown.get(impressionId);
      const known = list ? { query: list.query, item: list.items[position] } : {};
      const current = this.sessionId(); // a click is a sign of life, also of the session that is not its list's
      const session = (list && list.session) || this.keptLists().get(impressionId) || (more && more.session_id) || current;
      const made = Object.assign({ type: "click", impression_id: impressionId, position: position }, known, more);
      return this.emit(made, { session_id: session });
    }

    /* A click counts only with the session of its list, which may have ended since, or another page may have shown it. */
    remember(id, list) {
      shown.delete(id);
      shown.set(id, list);
      if (shown.size > MAX_LISTS) shown.delete(shown.keys().next().value);
      if (!this.storage) return;
      try {
        const kept = Array.from(this.keptLists().set(id, list.session));
        this.storage.setItem(LISTS, JSON.stringify(kept.slice(-MAX_LISTS)));
      } catch (error) {
        this.storage = null; // full or forbidden: go on in memory
      }
    }

    /* The sessions of the lists that pages of this site have shown last, by impression id. */
    keptLists() {
      try {
        const kept = JSON.parse((this.storage && this.storage.getItem(LISTS)) || "[]");
        return new Map(kept.filter((one) => typeof one[0] === "string" && typeof one[1] === "string"));
      } catch (error) {
        return new Map();
      }
    }

    sessionId() {
      return this.options.sessionId || this.session();
    }

    emit(event, more) {
      const made = Object.assign(
        { event_id: makeId(), ts: Date.now() / 1000, session_id: this.sessionId() },
        this.options.userId ? { user_id: this.options.userId } : {},
        event,
        more
      );
      this.count.emitted += 1;
      if (typeof made.query !== "string" || !made.query.trim()) {
        this.refuse(1, made.type + ": query must be a text that is not empty");
        return null;
      }
      const line = JSON.stringify(made);
      if (byteLength(line) > this.options.maxBytes) {
        this.refuse(1, made.type + ": larger than " + this.options.maxBytes + " bytes");
        return null;
      }
      this.queue.push(line);
      this.bound();
      this.store();
      if (this.queue.length >= this.options.batch && !this.failures) this.flush();
      else this.later(this.options.intervalMs);
      return made.event_id;
    }

    counters() {
      return Object.assign({ queued: this.queue.length }, this.count);
    }

    /* Send what waits, one batch after another; resolves to true when everything was accepted, to false after a failure. */
    flush() {
      if (!this.sending) {
        this.sending = this.drain().finally(() => {
          this.sending = null;
          if (this.queue.length) this.later(this.failures ? this.pause() : this.options.intervalMs);
        });
      }
      return this.sending;
    }

    async drain() {
      root.clearTimeout(this.timer);
      this.timer = null;
      while (this.queue.length) {
        const lines = this.take(this.options.batch);
        if (!(await this.post(lines))) return false;
        this.failures = 0;
        this.wait = 0;
      }
      return true;
    }

    /* The first lines that go into one request. They stay in the queue until they are accepted. */
    take(limit) {
      let size = 0;
      const lines = [];
      for (const line of this.queue.slice(0, limit)) {
        size += byteLength(line) + 1;
        if (lines.length && size > this.options.maxBytes) break;
        lines.push(line);
      }
      return lines;
    }

    async post(lines) {
      let answer;
      try {
        // text/plain needs no preflight request; the collector reads it as one event a line.
        answer = await root.fetch(this.target, {
          method: "POST",
          headers: { "Content-Type": "text/plain" },
          body: lines.join("\n"),
          credentials: "omit",
          cache: "no-store",
        });
      } catch (error) {
        return this.fail(0);
      }
      if (answer.status === 413 && lines.length > 1) {
        this.options.batch = Math.max(1, lines.length >> 1);
        return true;
      }
      if (answer.status === 408 || answer.status === 429 || answer.status >= 500) {
        return this.fail(Number(answer.headers.get("Retry-After")) * 1000 || 0);
      }
      const said = await answer.json().catch(() => ({}));
      if (answer.status === 401 || answer.status === 403 || answer.status === 404) {
        this.warn("events wait, the collector says " + answer.status + ": " + said.error); // a setting that can be corrected
        return this.fail(this.options.maxRetryMs);
      }
      this.settle(lines);
      const refused = answer.ok ? (said.rejected || []).length : lines.length;
      this.count.delivered += lines.length - refused;
      if (refused) this.refuse(refused, JSON.stringify(said.error || (said.rejected || [])[0] || answer.status));
      return true;
    }

    fail(wait) {
      this.failures += 1;
      this.count.retries += 1;
      this.wait = wait;
      return false;
    }

    /* Milliseconds until the next try: what the collector asked for, else doubling with jitter. */
    pause() {
      const doubled = Math.min(this.options.maxRetryMs, this.options.retryMs * 2 ** Math.min(this.failures - 1, 16));
      return Math.max(this.wait || 0, doubled * (0.5 + Math.random() / 2));
    }

    later(ms) {
      if (this.timer === null && !this.sending) {
        const timer = root.setTimeout(() => this.flush(), this.failures ? this.pause() : ms);
        if (timer && timer.unref) timer.unref(); // in Node a waiting event does not keep the process alive
        this.timer = timer;
      }
    }

    settle(lines) {
      const taken = new Set(lines);
      this.queue = this.queue.filter((line) => !taken.has(line));
      this.store();
    }

    refuse(number, why) {
      this.count.refused += number;
      this.warn(number + " event(s) refused: " + why);
    }

    warn(text) {
      if (root.console) root.console.warn("Queryloop: " + text);
    }

    bound() {
      const over = this.queue.length - this.options.maxQueued;
      if (over > 0) {
        this.queue.splice(0, over);
        this.count.dropped += over;
      }
    }

    /* The page is left: give the rest to the browser. While the collector does not answer it stays in storage instead. */
    leave() {
      if (!root.navigator || !root.navigator.sendBeacon || (this.failures && this.storage)) return;
      while (this.queue.length) {
        const lines = this.take(this.queue.length);
        if (!root.navigator.sendBeacon(this.target, new Blob([lines.join("\n")], { type: "text/plain" }))) return;
        this.count.beacons += 1;
        this.settle(lines);
      }
    }

    watchPage() {
      root.document.addEventListener("visibilitychange", () => {
        if (root.document.visibilityState === "hidden") this.leave();
      });
      root.addEventListener("pagehide", () => this.leave());
      root.addEventListener("online", () => this.flush());
    }

    store() {
      if (!this.storage) return;
      try {
        if (this.queue.length) this.storage.setItem(QUEUE, JSON.stringify(this.queue));
        else this.storage.removeItem(QUEUE);
      } catch (error) {
        this.storage = null; // full or forbidden: go on in memory
      }
    }

    /* What an earlier page could not send. Two tabs may both send it: it counts once. */
    recover() {
      if (!this.storage) return;
      try {
        const kept = JSON.parse(this.storage.getItem(QUEUE) || "[]");
        this.queue = kept.filter((line) => typeof line === "string").slice(-this.options.maxQueued);
      } catch (error) {
        this.storage.removeItem(QUEUE);
      }
      if (this.queue.length) this.later(0);
    }

    session() {
      const now = Date.now();
      let kept = this.kept;
      if (this.storage) {
        try {
          kept = JSON.parse(this.storage.getItem(SESSION) || "null") || kept;
        } catch (error) {
          kept = null;
        }
      }
      const fresh = kept && typeof kept.id === "string" && now - kept.last < this.options.sessionGapMs;
      this.kept = { id: fresh ? kept.id : makeId(), last: now };
      if (this.storage) {
        try {
          this.storage.setItem(SESSION, JSON.stringify(this.kept));
        } catch (error) {
          this.storage = null;
        }
      }
      return this.kept.id;
    }
  }

  return { connect: (options) => new Connection(options || {}), makeId: makeId };
});
