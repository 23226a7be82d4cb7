"""The words of the plain-English world: things that everybody knows, and what people ask a search engine about each kind.

Names of one kind are separated by commas, and neighbours are alike: they become related entities. An aspect is a line: how its
query is written, then, after "=", the words that say the same, any of which makes a text be about it.
"""

from __future__ import annotations

from collections.abc import Mapping

NAMES: Mapping[str, str] = {
    "city": (
        "lisbon, porto, madrid, barcelona, seville, paris, lyon, rome, florence, venice, milan, naples, vienna, prague, "
        "budapest, berlin, munich, hamburg, amsterdam, brussels, london, edinburgh, dublin, copenhagen, stockholm, oslo, "
        "helsinki, athens, istanbul, cairo, marrakech, cape town, dubai, mumbai, new delhi, bangkok, singapore, hong kong, "
        "tokyo, kyoto, seoul, sydney, melbourne, vancouver, seattle, san francisco, los angeles, las vegas, chicago, new york, "
        "boston, miami"
    ),
    "dish": (
        "lasagna, spaghetti carbonara, risotto, gnocchi, tiramisu, panna cotta, cheesecake, banana bread, apple pie, pancakes, "
        "waffles, french toast, french onion soup, chicken noodle soup, tomato soup, minestrone, beef stew, beef stroganoff, "
        "goulash, shepherds pie, meatloaf, pulled pork, pot roast, mac and cheese, chili con carne, tacos, enchiladas, "
        "burritos, guacamole, hummus, falafel, tabbouleh, chicken curry, butter chicken, biryani, naan, pad thai, fried rice, "
        "ramen, sushi, kimchi, potato salad, coleslaw, caesar salad"
    ),
    "plant": (
        "aloe vera, snake plant, jade plant, spider plant, pothos, monstera, philodendron, peace lily, orchid, bonsai, boston "
        "fern, rubber plant, fiddle leaf fig, lemon tree, olive tree, avocado tree, apple tree, blueberry bush, strawberry "
        "plant, tomato plant, cucumber plant, zucchini, basil, mint, rosemary, thyme, lavender, sage, chamomile, hydrangea, "
        "rose bush, peony, azalea, rhododendron, tulip, daffodil, dahlia, sunflower, marigold, geranium, begonia, hibiscus"
    ),
    "device": (
        "iphone, ipad, macbook, apple watch, airpods, samsung galaxy, google pixel, fitbit, kindle, nintendo switch, "
        "playstation, xbox, steam deck, oculus quest, chromebook, surface laptop, raspberry pi, laser printer, inkjet printer, "
        "scanner, router, smart tv, roku, chromecast, fire stick, alexa, google home, ring doorbell, security camera, gopro, "
        "dslr camera, drone, robot vacuum, air fryer, instant pot, espresso machine, dishwasher, washing machine, microwave"
    ),
    "illness": (
        "influenza, common cold, bronchitis, pneumonia, asthma, sinus infection, strep throat, ear infection, hay fever, "
        "migraine, vertigo, concussion, insomnia, anxiety, depression, high blood pressure, high cholesterol, diabetes, gout, "
        "arthritis, sciatica, carpal tunnel, osteoporosis, anemia, kidney stones, gallstones, acid reflux, stomach ulcer, food "
        "poisoning, appendicitis, celiac disease, lactose intolerance, eczema, psoriasis, shingles, chickenpox, measles, "
        "ringworm, lyme disease"
    ),
    "film": (
        "titanic, avatar, casablanca, the godfather, goodfellas, pulp fiction, fight club, the matrix, inception, interstellar, "
        "blade runner, alien, the terminator, jurassic park, jaws, indiana jones, back to the future, star wars, star trek, "
        "dune, the lord of the rings, the hobbit, harry potter, the hunger games, twilight, the avengers, iron man, black "
        "panther, spider man, batman, joker, james bond, mission impossible, top gun, rocky, forrest gump, toy story, finding "
        "nemo, shrek, encanto, the lion king, moana"
    ),
    "dog": (
        "labrador, golden retriever, german shepherd, border collie, australian shepherd, corgi, beagle, basset hound, "
        "bloodhound, greyhound, whippet, dachshund, chihuahua, pomeranian, yorkshire terrier, jack russell, scottish terrier, "
        "shih tzu, maltese, bichon frise, poodle, goldendoodle, cocker spaniel, springer spaniel, irish setter, dalmatian, "
        "boxer dog, french bulldog, english bulldog, pug, boston terrier, pit bull, rottweiler, doberman, great dane, mastiff, "
        "saint bernard, bernese mountain dog, newfoundland dog, siberian husky, alaskan malamute, samoyed, shiba inu, akita"
    ),
    "sport": (
        "tennis, badminton, table tennis, squash, pickleball, golf, baseball, softball, cricket, field hockey, ice hockey, "
        "lacrosse, basketball, volleyball, handball, soccer, rugby, american football, swimming, diving, water polo, rowing, "
        "kayaking, surfing, sailing, snowboarding, skiing, figure skating, gymnastics, weightlifting, boxing, karate, judo, "
        "taekwondo, wrestling, fencing, archery, bowling, rock climbing, mountain biking, marathon running, triathlon"
    ),
    "car": (
        "toyota corolla, toyota camry, honda civic, honda accord, mazda 3, nissan altima, hyundai elantra, kia forte, "
        "volkswagen golf, volkswagen passat, ford focus, ford mustang, chevrolet camaro, dodge charger, chevrolet corvette, "
        "porsche 911, tesla model 3, tesla model y, nissan leaf, toyota prius, audi a4, bmw 3 series, mercedes c class, lexus "
        "es, volvo xc60, subaru outback, subaru forester, toyota rav4, honda cr v, mazda cx 5, ford escape, hyundai tucson, kia "
        "sorento, toyota highlander, honda pilot, jeep wrangler, jeep cherokee, ford bronco, ford f150, toyota tacoma"
    ),
    "job": (
        "nurse, paramedic, doctor, surgeon, dentist, dental hygienist, pharmacist, veterinarian, physical therapist, "
        "psychologist, social worker, teacher, librarian, professor, lawyer, paralegal, judge, police officer, firefighter, "
        "accountant, actuary, bank teller, financial advisor, real estate agent, software engineer, data analyst, web "
        "developer, graphic designer, architect, civil engineer, mechanical engineer, electrician, plumber, carpenter, welder, "
        "truck driver, pilot, flight attendant, chef, bartender, hairdresser, photographer, journalist, translator"
    ),
}

ASPECTS: Mapping[str, str] = {
    "city": """
        {} weather = weather, climate, forecast, temperature
        things to do in {} = things to do, attractions, sightseeing, places to visit, places to see, landmarks
        {} hotels = hotels, hostels, accommodation, where to stay
        flights to {} = flights, plane tickets
        {} map = map
        best restaurants in {} = restaurants, where to eat, food
        {} population = population, how many people
        best time to visit {} = best time, when to visit
        {} airport = airport
        cost of living in {} = cost of living, living costs, expensive
        history of {} = history, founded
        {} nightlife = nightlife, bars, clubs
        {} public transport = public transport, public transportation, metro, subway, tram
        is {} safe = safe, safety, crime, dangerous
        {} museums = museums, galleries
        day trips from {} = day trips, excursions
    """,
    "dish": """
        {} recipe = recipe, how to make, how to cook
        {} calories = calories, nutrition, carbs
        {} ingredients = ingredients, made of
        what to serve with {} = serve with, goes with, side dishes
        vegan {} = vegan, vegetarian, without meat
        can you freeze {} = freeze, frozen, freezing
        how to reheat {} = reheat, reheating, leftovers
        {} near me = near me, delivery, restaurants
        where does {} come from = come from, origin, history, invented
        gluten free {} = gluten free, without gluten
        easy {} = easy, simple, quick
        {} in the slow cooker = slow cooker, crockpot
        is {} healthy = healthy, good for you, unhealthy
        wine with {} = wine
        how long does {} last = how long, keep in the fridge, storage
    """,
    "plant": """
        how to care for {} = care, look after
        how often to water {} = water, watering
        {} light requirements = light, sunlight, sun, shade
        best soil for {} = soil, potting mix
        how to propagate {} = propagate, propagation, cuttings
        when to prune {} = prune, pruning, trim
        is {} toxic to cats = toxic, poisonous
        {} yellow leaves = yellow leaves, leaves turning yellow, leaves turning brown
        how to repot {} = repot, repotting, pot size
        {} fertilizer = fertilizer, feed
        {} pests = pests, bugs, aphids, spider mites
        growing {} from seed = seed
        how fast does {} grow = how fast, growth rate, how tall
        {} in winter = winter, frost, cold hardy
        {} benefits = benefits, uses, good for
    """,
    "device": """
        {} price = price, cost, how much
        {} review = review, worth it
        how to reset {} = reset, factory settings
        {} not working = not working, wont turn on, troubleshooting, problems
        {} setup = setup, set up, install, how to connect
        {} manual = manual, user guide, instructions
        {} deals = deals, black friday, sale, discount, cheap
        {} accessories = accessories, case
        {} battery life = battery life, battery
        {} repair = repair, fix, broken screen
        {} update = update, software update, firmware
        best {} for beginners = beginners, which one to buy
        {} warranty = warranty, return policy
        how to clean {} = clean, cleaning
        used {} = used, refurbished, second hand
    """,
    "illness": """
        {} symptoms = symptoms, signs
        {} treatment = treatment, cure, how to treat, therapy
        {} causes = causes, what causes
        is {} contagious = contagious, infectious, spread
        home remedies for {} = home remedies, natural remedies
        {} medication = medication, medicine, drugs, antibiotics
        how long does {} last = how long, duration, recovery time
        {} diet = diet, foods to avoid, foods to eat
        {} diagnosis = diagnosis, diagnosed, test
        {} in children = children, kids, babies, toddlers
        {} during pregnancy = pregnancy, pregnant
        how to prevent {} = prevent, prevention, vaccine
        {} complications = complications, dangerous, fatal
        {} pictures = pictures, photos, what does it look like
        types of {} = types, stages
    """,
    "film": """
        {} cast = cast, actors, who plays
        {} trailer = trailer
        {} soundtrack = soundtrack, music, songs
        {} ending explained = ending, explained, meaning
        where to watch {} = where to watch, streaming, watch online, netflix
        {} quotes = quotes, best lines
        {} review = review, rating, rotten tomatoes
        {} release date = release date, when did it come out, year
        {} sequel = sequel, next movie
        {} plot = plot, summary, synopsis, story
        {} director = director, who directed
        {} box office = box office, budget, gross
        {} filming locations = filming locations, where was it filmed
        is {} based on a true story = true story, based on, book
        {} costume = costume, halloween
        movies like {} = movies like, similar movies
    """,
    "dog": """
        {} puppies for sale = puppies, breeders, for sale
        {} temperament = temperament, personality, aggressive
        how to train a {} = train, training, obedience
        {} lifespan = lifespan, life expectancy, how long do they live
        {} shedding = shedding, hypoallergenic, shed
        {} grooming = grooming, haircut, brushing
        best food for {} = food, feeding, diet
        {} weight = weight, size, how big
        {} mix = mix, crossbreed
        {} health problems = health problems, health issues, diseases
        how much exercise does a {} need = exercise, walks
        {} rescue = rescue, adoption, adopt
        names for a {} = names
        {} with kids = kids, children, family dog
        {} colors = colors, coat, markings
        how much does a {} cost = cost, price
    """,
    "sport": """
        {} rules = rules, how to play, regulations
        {} equipment = equipment, gear, what do you need
        {} lessons near me = lessons, classes, near me, coach
        {} shoes = shoes, footwear
        {} world championship = world championship, world cup, tournament
        {} olympics = olympics
        {} injuries = injuries
        history of {} = history, invented, origin
        {} workout = workout, training, exercises, drills
        how to get better at {} = get better, improve, tips, techniques
        {} scores = scores, results, rankings
        {} for kids = kids, children, youth
        famous {} players = famous, best players, athletes
        {} terms = terms, glossary, vocabulary
        calories burned {} = calories
        {} clothes = clothes, uniform, outfit
    """,
    "car": """
        {} price = price, cost, how much, msrp
        {} review = review, worth it
        {} mpg = mpg, gas mileage, fuel economy
        used {} for sale = used, for sale, second hand
        {} lease deals = lease, deals, financing
        {} problems = problems, common issues, reliability, reliable
        {} recall = recall
        {} oil change = oil change, oil type
        {} tire size = tire, wheels
        {} interior = interior, seats, dashboard
        {} horsepower = horsepower, engine, top speed
        {} towing capacity = towing, tow
        {} insurance cost = insurance
        {} safety rating = safety, crash test
        {} colors = colors, paint
        {} battery replacement = battery
    """,
    "job": """
        {} salary = salary, pay, how much, wages
        how to become a {} = become, requirements, qualifications
        {} jobs near me = jobs, vacancies, hiring, openings
        {} resume = resume, cv, cover letter
        {} interview questions = interview
        what does a {} do = what does, duties, responsibilities, job description
        {} degree = degree, education, college
        {} certification = certification, license, exam, certificate
        {} skills = skills, qualities
        {} work hours = hours, schedule, shifts
        {} training = training, courses, apprenticeship
        is {} a good career = good career, career outlook, job outlook, demand
        {} uniform = uniform, dress code, what to wear
        {} tools = tools, equipment, software
        {} gifts = gifts, gift ideas
    """,
}

SILENT = (
    "a an the this that it its i you your my me we they of in on at to for from by with about into as and or is are was "
    "were be been do does did can could should will would how what when where which who why there best top most s t re"
)
"""Words that say nothing by themselves."""


def list_names(kind: str) -> list[str]:
    """Return the names of one kind, alike ones beside each other."""
    return NAMES[kind].split(", ")


def list_aspects(kind: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return the aspects of one kind: the query with {} for the name, and the phrases that mean the same."""
    lines = (line.strip().partition(" = ") for line in ASPECTS[kind].strip().splitlines())
    return [(pattern, tuple(phrases.split(", "))) for pattern, _, phrases in lines]
