#!/usr/bin/env python3
"""Write a small English-German corpus in which most sources have two to four right targets.

    python corpus.py OUT [--pairs 30000] [--seed 1]

A non-autoregressive model predicts all target words at once, so where a source has two right targets it may mix
them ("hat ... kaufte").  Each pair shows one target of its source, drawn at random from the full list.  What varies:

* dates, times, numbers: "am 3. Mai 2021" / "am dritten Mai 2021" / "am 03.05.2021", "um halb vier" / "um 15.30 Uhr"
  (lengths differ); clock times lie between 8.00 and 19.45, so three o'clock is 15 Uhr;
* tense: "kaufte ..." / "hat ... gekauft", "kauft morgen ..." / "wird morgen ... kaufen" (distant words must agree);
* word order: "Wir fahren am Montag ..." / "Am Montag fahren wir ..." (everything shifts);
* words: Auto / Wagen with their genders, beginnen / an|fangen, Lehrer / Lehrerin, du / Sie with their verb forms.

Only random.Random(seed).random() decides anything, so a seed gives the same bytes on every machine.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import random
import sys
from functools import lru_cache
from pathlib import Path
from typing import Iterator, NamedTuple, Sequence, TypeVar

T = TypeVar("T")
HELD_OUT = 500  # pairs in valid and in test
EXTRA = 3  # further references of the test set
MOST_TARGETS = 1 + EXTRA  # sources with more are left out: the references are then all right targets
WORDS = range(6, 15)  # how many a source and each of its targets may have

# ------------------------------------------------------------------------------------------------- tables
# class -> English: gender nominative[/accusative[/dative]] [plural], next German noun; next entry
NOUNS = {
    "pronoun": """I: ich ich/mich/mir; you: du du/dich/dir, wir Sie/Sie/Ihnen; he: er er/ihn/ihm; she: er sie/sie/ihr;
        we: wir wir/uns/uns; they: wir sie/sie/ihnen""",
    "kin": """father: m Vater; mother: f Mutter; brother: m Bruder; sister: f Schwester; son: m Sohn; uncle: m Onkel;
        daughter: f Tochter; aunt: f Tante; grandfather: m Großvater, m Opa; grandmother: f Großmutter, f Oma;
        parents: p Eltern; children: p Kinder/Kinder/Kindern; friend: m Freund, f Freundin; boss: m Chef, f Chefin;
        neighbour: m Nachbar/Nachbarn, f Nachbarin; colleague: m Kollege/Kollegen, f Kollegin""",
    "people": """teacher: m Lehrer, f Lehrerin; doctor: m Arzt, f Ärztin; man: m Mann; woman: f Frau; girl: n Mädchen;
        boy: m Junge/Jungen; policeman: m Polizist/Polizisten; waiter: m Kellner; waitress: f Kellnerin; lady: f Dame;
        actor: m Schauspieler; actress: f Schauspielerin; postman: m Postbote/Postboten, m Briefträger""",
    "name": """Anna: f Anna; Peter: m Peter; Maria: f Maria; Paul: m Paul; Julia: f Julia; Max: m Max;
        Mr Schmidt: m Herr_Schmidt/Herrn_Schmidt; Mrs Weber: f Frau_Weber""",
    "vehicle": """car: n Auto Autos, m Wagen Wagen; bicycle: n Fahrrad Fahrräder, n Rad Räder; boat: n Boot Boote;
        motorbike: n Motorrad Motorräder; tractor: m Traktor Traktoren""",
    "device": """computer: m Computer Computer, m Rechner Rechner; telephone: n Telefon Telefone; clock: f Uhr Uhren;
        camera: f Kamera Kameras; radio: n Radio Radios; fridge: m Kühlschrank Kühlschränke; lamp: f Lampe Lampen;
        washing machine: f Waschmaschine Waschmaschinen; mobile phone: n Handy Handys, n Mobiltelefon Mobiltelefone""",
    "clothes": """jacket: f Jacke Jacken; coat: m Mantel Mäntel; shirt: n Hemd Hemden; hat: m Hut Hüte;
        skirt: m Rock Röcke; dress: n Kleid Kleider; belt: m Gürtel Gürtel;
        pullover: m Pullover Pullover, m Pulli Pullis""",
    "print": """book: n Buch Bücher; newspaper: f Zeitung Zeitungen; magazine: f Zeitschrift Zeitschriften;
        novel: m Roman Romane; dictionary: n Wörterbuch Wörterbücher""",
    "writing": """letter: m Brief Briefe; report: m Bericht Berichte; poem: n Gedicht Gedichte; email: f E-Mail E-Mails,
        f Mail Mails; postcard: f Postkarte Postkarten; story: f Geschichte Geschichten, f Erzählung Erzählungen""",
    "furniture": """table: m Tisch Tische; chair: m Stuhl Stühle; cupboard: m Schrank Schränke; bed: n Bett Betten;
        sofa: n Sofa Sofas, f Couch Couchs; mirror: m Spiegel Spiegel; picture: n Bild Bilder""",
    "food": """apple: m Apfel Äpfel; cake: m Kuchen Kuchen; orange: f Orange Orangen, f Apfelsine Apfelsinen;
        roll: n Brötchen Brötchen, f Semmel Semmeln; egg: n Ei Eier; pear: f Birne Birnen; sausage: f Wurst Würste""",
    "drink": """bottle of milk: f Flasche_Milch Flaschen_Milch; bottle of wine: f Flasche_Wein Flaschen_Wein;
        cup of tea: f Tasse_Tee Tassen_Tee; glass of water: n Glas_Wasser Gläser_Wasser, n Glas_Wasser Glas_Wasser;
        cup of coffee: f Tasse_Kaffee Tassen_Kaffee; glass of juice: n Glas_Saft Gläser_Saft, n Glas_Saft Glas_Saft""",
    "ware": """kilo of potatoes: n Kilo_Kartoffeln Kilo_Kartoffeln; kilo of flour: n Kilo_Mehl Kilo_Mehl;
        litre of oil: m Liter_Öl Liter_Öl; packet of rice: n Päckchen_Reis Päckchen_Reis, f Packung_Reis Packungen_Reis;
        slice of bread: f Scheibe_Brot Scheiben_Brot; piece of cheese: n Stück_Käse Stücke_Käse""",
    "opening": """door: f Tür Türen; window: n Fenster Fenster; gate: n Tor Tore; suitcase: m Koffer Koffer;
        drawer: f Schublade Schubladen; parcel: n Paket Pakete; box: f Kiste Kisten, f Schachtel Schachteln""",
    "home": "house: n Haus Häuser; flat: f Wohnung Wohnungen; room: n Zimmer Zimmer; garage: f Garage Garagen",
    "small": """key: m Schlüssel Schlüssel; passport: m Pass Pässe, m Reisepass Reisepässe; ring: m Ring Ringe;
        ticket: f Fahrkarte Fahrkarten; bag: f Tasche Taschen;
        umbrella: m Regenschirm Regenschirme, m Schirm Schirme""",
    "animal": """dog: m Hund Hunde; cat: f Katze Katzen; horse: n Pferd Pferde; bird: m Vogel Vögel; cow: f Kuh Kühe;
        rabbit: n Kaninchen Kaninchen""",
    "event": """concert: n Konzert; meeting: f Besprechung, f Sitzung; party: f Party, f Feier; game: n Spiel;
        course: m Kurs; exam: f Prüfung; lecture: f Vorlesung, m Vortrag; wedding: f Hochzeit;
        conference: f Konferenz, f Tagung""",
    "transport": "train: m Zug; bus: m Bus; ship: n Schiff; tram: f Straßenbahn",
}
# base past = infinitive third-person preterite participle [+sein] [+dat] [+gift] | synonym : classes of its object
ACTIONS = """buy bought = kaufen kauft kaufte gekauft : vehicle device clothes print furniture food ware;
    sell sold = verkaufen verkauft verkaufte verkauft : vehicle device print furniture home animal;
    read read = lesen liest las gelesen : print writing; write wrote = schreiben schreibt schrieb geschrieben : writing;
    translate translated = übersetzen übersetzt übersetzte übersetzt : print writing;
    find found = finden findet fand gefunden : small animal; look_for looked_for = suchen sucht suchte gesucht : small;
    lose lost = verlieren verliert verlor verloren : small; forget forgot = vergessen vergisst vergaß vergessen : small;
    need needed = brauchen braucht brauchte gebraucht | benötigen benötigt benötigte benötigt : device small ware;
    repair repaired = reparieren repariert reparierte repariert : vehicle device;
    eat ate = essen isst aß gegessen : food; drink drank = trinken trinkt trank getrunken : drink;
    order ordered = bestellen bestellt bestellte bestellt : device furniture drink;
    feed fed = füttern füttert fütterte gefüttert : animal;
    open opened = öffnen öffnet öffnete geöffnet | auf.machen macht machte aufgemacht : opening;
    close closed = schließen schließt schloss geschlossen | zu.machen macht machte zugemacht : opening;
    clean cleaned = putzen putzt putzte geputzt | reinigen reinigt reinigte gereinigt : home vehicle;
    rent rented = mieten mietet mietete gemietet : home vehicle; wear wore = tragen trägt trug getragen : clothes;
    wash washed = waschen wäscht wusch gewaschen : clothes; see saw = sehen sieht sah gesehen : person animal;
    visit visited = besuchen besucht besuchte besucht : person; meet met = treffen trifft traf getroffen : person;
    call called = an.rufen ruft rief angerufen : person; invite invited = ein.laden lädt lud eingeladen : person;
    collect collected = ab.holen holt holte abgeholt : person; help helped = helfen hilft half geholfen +dat : person;
    thank thanked = danken dankt dankte gedankt +dat : person; give gave = geben gibt gab gegeben +gift : print small;
    show showed = zeigen zeigt zeigte gezeigt +gift : print clothes;
    lend lent = leihen leiht lieh geliehen +gift : vehicle;
    send sent = schicken schickt schickte geschickt +gift | senden sendet sandte gesandt +gift : print writing"""
MOTIONS = """travel travelled = reisen reist reiste gereist +sein | fahren fährt fuhr gefahren +sein : far means;
    go went = gehen geht ging gegangen +sein : near; fly flew = fliegen fliegt flog geflogen +sein : far;
    return returned = zurück.kehren kehrt kehrte zurückgekehrt +sein
        | zurück.kommen kommt kam zurückgekommen +sein : far;
    move moved = ziehen zieht zog gezogen +sein | um.ziehen zieht zog umgezogen +sein : far;
    walk walked = laufen läuft lief gelaufen +sein : near"""
EVENTS = """begin began = beginnen beginnt begann begonnen | an.fangen fängt fing angefangen : event;
    take_place took_place = statt.finden findet fand stattgefunden : event;
    end ended = enden endet endete geendet : event; leave left = ab.fahren fährt fuhr abgefahren +sein : transport;
    arrive arrived = an.kommen kommt kam angekommen +sein : transport"""
MONEY = """cost cost = kosten kostet kostete gekostet : clothes print furniture drink ware;
    pay paid = bezahlen bezahlt bezahlte bezahlt | zahlen zahlt zahlte gezahlt : clothes print furniture device"""
UNPLANNED = ("need", "lose", "forget", "cost")  # nobody wants to, will or can

THINGS = "new=neu; old=alt; big=groß; small=klein; beautiful=schön; cheap=billig/günstig; expensive=teur"
COLOURS = "red=rot; blue=blau; green=grün; black=schwarz; white=weiß; yellow=gelb; brown=braun; grey=grau"
TEXTS = "interesting=interessant; long=lang; short=kurz; boring=langweilig; exciting=spannend/aufregend"
FOODS = "fresh=frisch; warm=warm; cold=kalt; big=groß; small=klein; delicious=lecker/köstlich; good=gut"
PERSONS = "young=jung; old=alt; friendly=freundlich/nett; clever=klug; rich=reich"
# class -> stems, which take the endings ("teur" for teuer); nouns of other classes take no adjective
ADJECTIVES = {
    "print": TEXTS,
    "writing": TEXTS,
    "food": FOODS,
    "kin": PERSONS,
    "people": PERSONS,
    **dict.fromkeys(("opening", "home", "small", "animal"), THINGS),
    **dict.fromkeys(("vehicle", "device", "clothes", "furniture"), f"{THINGS};{COLOURS}"),
}
CITIES = """Berlin=Berlin; Hamburg=Hamburg; Munich=München; Cologne=Köln; Vienna=Wien; Zurich=Zürich; Hanover=Hannover;
    Nuremberg=Nürnberg; Prague=Prag; Rome=Rom; Paris=Paris; Warsaw=Warschau; Brussels=Brüssel; Venice=Venedig"""
PLACES = """in the garden=im Garten; in the kitchen=in der Küche; at home=zu Hause/daheim; at school=in der Schule;
    at the office=im Büro; in the park=im Park; at the market=auf dem Markt; at the station=am Bahnhof;
    on the beach=am Strand; at the hotel=im Hotel; in town=in der Stadt; in front of the church=vor der Kirche;
    behind the house=hinter dem Haus; next to the museum=neben dem Museum; in the street=auf der Straße;
    at the library=in der Bibliothek/in der Bücherei"""
NEAR = """to the cinema=ins Kino; to the theatre=ins Theater; to school=zur Schule/in die Schule; home=nach Hause;
    to the station=zum Bahnhof; to the market=auf den Markt/zum Markt; to the office=ins Büro; to the museum=ins Museum;
    to the library=in die Bibliothek/in die Bücherei; to the beach=an den Strand/zum Strand; to the bank=zur Bank;
    to the supermarket=in den Supermarkt/zum Supermarkt; to the post office=zur Post; to the park=in den Park"""
FAR = """to Italy=nach Italien; to France=nach Frankreich; to Spain=nach Spanien; to Switzerland=in die Schweiz;
    to Turkey=in die Türkei; to Austria=nach Österreich; to the Netherlands=in die Niederlande"""
MEANS = """by train=mit dem Zug/mit der Bahn; by car=mit dem Auto/mit dem Wagen; by bus=mit dem Bus;
    by bicycle=mit dem Fahrrad/mit dem Rad"""
# Past and present share no time, so that "I read the book ..." says which tense "read" is.
TIMES = {
    "past": """yesterday=gestern; last week=letzte Woche/vorige Woche; last year=letztes Jahr/im letzten Jahr;
        this morning=heute Morgen/heute früh; yesterday evening=gestern Abend; the day before yesterday=vorgestern;
        last month=letzten Monat/im letzten Monat; three days ago=vor drei Tagen/vor 3 Tagen;
        in 2019=2019/im Jahr 2019""",
    "present": """every day=jeden Tag/täglich; every week=jede Woche; every morning=jeden Morgen; now=jetzt/nun;
        at the weekend=am Wochenende; in the evening=am Abend/abends; in the afternoon=am Nachmittag/nachmittags;
        in summer=im Sommer; in winter=im Winter; every Monday=jeden Montag/montags;
        every Friday=jeden Freitag/freitags""",
    "future": """tomorrow=morgen; next week=nächste Woche/kommende Woche; next month=nächsten Monat/im nächsten Monat;
        today=heute; tonight=heute Abend; tomorrow evening=morgen Abend; the day after tomorrow=übermorgen; soon=bald;
        next year=nächstes Jahr/im nächsten Jahr; in two weeks=in zwei Wochen/in 2 Wochen""",
}
DAYS = """on Monday=am Montag; on Tuesday=am Dienstag; on Wednesday=am Mittwoch; on Thursday=am Donnerstag;
    on Friday=am Freitag; on Saturday=am Samstag/am Sonnabend; on Sunday=am Sonntag"""
MONTHS = """January=Januar; February=Februar; March=März; April=April; May=Mai; June=Juni; July=Juli; August=August;
    September=September; October=Oktober; November=November; December=Dezember"""
# minute: English words, German words, whether English and German name the next hour
CLOCK = {
    0: ("{} o'clock", "{} Uhr", 0, 0),
    15: ("quarter past {}", "Viertel nach {}", 0, 0),
    30: ("half past {}", "halb {}", 0, 1),
    45: ("quarter to {}", "Viertel vor {}", 1, 1),
}
ENGLISH_NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty twenty-one twenty-two twenty-three twenty-four twenty-five twenty-six
    twenty-seven twenty-eight""".split()
GERMAN_NUMBERS = """null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn
    sechzehn siebzehn achtzehn neunzehn zwanzig einundzwanzig zweiundzwanzig dreiundzwanzig vierundzwanzig
    fünfundzwanzig sechsundzwanzig siebenundzwanzig achtundzwanzig""".split()
ORDINALS = {1: "ersten", 3: "dritten", 7: "siebten", 8: "achten"}  # the irregular ones, as after "am"
NOM, ACC, DAT = range(3)
STRONG = {"m": ("er", "en", "em"), "f": ("e", "e", "er"), "n": ("es", "es", "em"), "p": ("e", "e", "en")}
EIN = {"a": "ein", "my": "mein", "his": "sein", "her": "ihr", "our": "unser", "their": "ihr"}
POSSESSIVES = tuple(EIN)[1:]  # without "your", which would have to agree with du or Sie
SPEAKERS = ("I", "you", "we")
OBJECT_FORM = {"I": "me", "you": "you", "he": "him", "she": "her", "we": "us", "they": "them"}
WHO = ("ich", "du", "er", "wir")  # verb forms; "sie" (they) and "Sie" take those of "wir"
AUXILIARIES = {
    "haben": "habe hast hat haben",
    "sein": "bin bist ist sind",
    "future": "werde wirst wird werden",
    "can": "kann kannst kann können",
    "must": "muss musst muss müssen",
    "want to": "will willst will wollen",
    "should": "sollte solltest sollte sollten",
}
# The slots of a German sentence in order: each is used once, and those that the scene lacks are left out.
FIELD = "subject dative definite time manner place goal indefinite tail"
ORDERS = {
    "statement": (f"subject finite {FIELD}", f"time finite {FIELD}"),
    "question": (f"finite {FIELD}",),
    "why": (f"why finite {FIELD}",),
}
ENGLISH_FIELD = "dative definite indefinite goal manner place time".split()


class Part(NamedTuple):
    """A piece of a sentence with its German variants."""

    en: str = ""
    de: tuple[str, ...] = ("",)


class Form(NamedTuple):
    """A German noun or pronoun."""

    gender: str  # m, f, n, p (plural); a pronoun has its verb form here
    cases: tuple[str, ...]  # nominative, accusative, dative singular
    plural: str


class NP(NamedTuple):
    """A noun phrase."""

    en: str
    kind: str  # its class
    forms: tuple[Form, ...]  # the German nouns that translate it
    det: str = ""
    adjective: Part = Part()
    count: Part = Part()


class GermanVerb(NamedTuple):
    prefix: str  # of a separable verb
    infinitive: str  # without the prefix, as the next two
    present: str  # third person singular
    preterite: str
    participle: str
    flags: tuple[str, ...]


class Verb(NamedTuple):
    base: str
    past: str
    german: tuple[GermanVerb, ...]
    kinds: tuple[str, ...]


class Scene(NamedTuple):
    """What a source says; its English and all its German targets follow from it alone."""

    subject: NP
    verb: Verb
    tense: str
    mood: str  # a key of ORDERS
    parts: dict[str, Part]
    fronted: bool = False  # English puts the time first


# ------------------------------------------------------------------------------------- reading the tables
def entries(table: str, between: str = ";") -> list[str]:
    return [" ".join(entry.split()) for entry in table.split(between)]


@lru_cache(maxsize=None)
def pairs(table: str) -> tuple[Part, ...]:
    """The rows of an "English=German/German" table."""
    return tuple(Part(en, tuple(de.split("/"))) for en, de in (entry.split("=") for entry in entries(table)))


def form(text: str) -> Form:
    gender, singular, *plural = text.split()
    cases = singular.replace("_", " ").split("/")
    return Form(gender, tuple((cases + cases[-1:] * 2)[:3]), "".join(plural).replace("_", " "))


@lru_cache(maxsize=None)
def nouns(kind: str) -> tuple[NP, ...]:
    rows = (entry.split(": ") for entry in entries(NOUNS[kind]))
    return tuple(NP(en, kind, tuple(form(text) for text in entries(de, ","))) for en, de in rows)


def german_verb(text: str) -> GermanVerb:
    infinitive, present, preterite, participle, *flags = text.split()
    prefix, _, stem = infinitive.rpartition(".")
    return GermanVerb(prefix, stem, present, preterite, participle, tuple(flags))


@lru_cache(maxsize=None)
def verbs(table: str) -> tuple[Verb, ...]:
    return tuple(verb(*entry.replace(" : ", " = ").split(" = ")) for entry in entries(table))


def verb(english: str, german: str, kinds: str) -> Verb:
    base, past = (word.replace("_", " ") for word in english.split())
    return Verb(base, past, tuple(german_verb(text) for text in german.split(" | ")), tuple(kinds.split()))


# ------------------------------------------------------------------------------------------ noun phrases
def endingless(det: str, gender: str, case: int) -> bool:
    """No determiner, or one like "ein" in "ein Wagen": then the adjective shows the gender."""
    return not det or (det in EIN and (gender, case) in (("m", NOM), ("n", NOM), ("n", ACC)))


def determiner(det: str, gender: str, case: int) -> str:
    if endingless(det, gender, case):
        return EIN.get(det, "")
    ending = STRONG[gender][case]
    if det == "the":
        return "d" + {"e": "ie", "es": "as"}.get(ending, ending)
    return EIN.get(det, "dies") + ending


def adjective_ending(det: str, gender: str, case: int) -> str:
    if endingless(det, gender, case):
        return STRONG[gender][case]
    return "e" if (case == NOM and gender != "p") or (case == ACC and gender in "fn") else "en"


def german_np(np: NP, form: Form, case: int) -> list[str]:
    """The phrase with one of its nouns; what still varies is its adjective and how its count is written."""
    gender, name = ("p", form.plural) if np.count.en else (form.gender, form.cases[case])
    det = determiner(np.det, gender, case)
    ending = adjective_ending(np.det, gender, case) if np.adjective.en else ""
    return [spaced(det, count, stem + ending, name) for stem in np.adjective.de for count in np.count.de]


def english_np(np: NP, case: int = ACC) -> str:
    if np.kind == "pronoun" and case != NOM:
        return OBJECT_FORM[np.en]
    unit, of, substance = np.en.partition(" of ")
    rest = spaced(np.count.en, np.adjective.en, (add_s(unit) if np.count.en else unit) + of + substance)
    return spaced("an" if np.det == "a" and rest[0] in "aeiou" else np.det, rest)


def np_part(np: NP, case: int) -> Part:
    return Part(english_np(np), tuple(text for form in np.forms for text in german_np(np, form, case)))


def spaced(*words: str) -> str:
    return " ".join(filter(None, words))


def joined(first: Part, second: Part) -> Part:
    return Part(spaced(first.en, second.en), tuple(spaced(a, b) for a in first.de for b in second.de))


def add_s(word: str) -> str:
    """The ending of plurals and of verbs in the third person."""
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "ch", "sh", "go")) else "s")


# ------------------------------------------------------------------------------------------------- verbs
def agreement(np: NP, form: Form) -> str:
    """Which of the verb forms of WHO the subject takes."""
    if np.count.en or form.gender == "p":
        return "wir"
    return form.gender if form.gender in WHO else "er"


def present(verb: GermanVerb, who: str) -> str:
    if who in ("er", "wir"):
        return verb.present if who == "er" else verb.infinitive
    if who == "ich":
        return verb.infinitive[:-1] + ("" if verb.infinitive.endswith("en") else "e")
    stem = verb.present[:-1]
    return stem + ("t" if stem[-1] in "sßz" else "st")


def preterite(verb: GermanVerb, who: str) -> str:
    plural = "n" if verb.preterite.endswith("e") else "en"
    return verb.preterite + (plural if who == "wir" else "")


def auxiliary(name: str, who: str) -> str:
    return AUXILIARIES[name].split()[WHO.index(who)]


def predicates(verb: GermanVerb, tense: str, who: str, timed: bool) -> list[tuple[str, str]]:
    """The finite verb and what ends the clause: the past is perfect or preterite (which "du" hardly uses), and the
    future needs no "werden" where a time is named."""
    now = (present(verb, who), verb.prefix)
    if tense == "present":
        return [now]
    if tense == "past":
        perfect = (auxiliary("sein" if "+sein" in verb.flags else "haben", who), verb.participle)
        return [perfect] if who == "du" else [perfect, (preterite(verb, who), verb.prefix)]
    later = (auxiliary(tense, who), verb.prefix + verb.infinitive)
    return [later, now] if tense == "future" and timed else [later]


def english_predicate(scene: Scene) -> tuple[str, str]:
    """The auxiliary, which goes before the subject in a question, and the rest of the verb."""
    base, tense, third = scene.verb.base, scene.tense, agreement(scene.subject, scene.subject.forms[0]) == "er"
    if tense == "want to":
        base, tense = f"want to {base}", "present"
    if tense not in ("present", "past"):
        return {"future": "will"}.get(tense, tense), base
    if scene.mood != "statement":
        return "did" if tense == "past" else "does" if third else "do", base
    first, space, rest = base.partition(" ")
    return "", scene.verb.past if tense == "past" else (add_s(first) if third else first) + space + rest


# --------------------------------------------------------------------------------------------- sentences
def english(scene: Scene) -> str:
    parts = {slot: part.en for slot, part in scene.parts.items()}
    front = parts.pop("time") + "," if scene.fronted else parts.get("why", "")
    aux, verb = english_predicate(scene)
    start = [english_np(scene.subject, NOM), aux]
    field = (parts.get(slot, "") for slot in ENGLISH_FIELD)
    return sentence((front, *(start if scene.mood == "statement" else start[::-1]), verb, *field), scene.mood)


def targets(scene: Scene) -> tuple[str, ...]:
    """Every German target of the scene, in a fixed order, each once."""
    found: dict[str, None] = {}
    for slots in readings(scene):
        for order in ORDERS[scene.mood]:
            found.update(dict.fromkeys(linearize(order.split(), slots, scene.mood)))
    return tuple(found)


def readings(scene: Scene) -> Iterator[dict[str, Sequence[str]]]:
    """The slots of the sentence with their variants, once for each subject and verb form that go together."""
    slots = {slot: part.de for slot, part in scene.parts.items()}
    for form, verb in itertools.product(scene.subject.forms, scene.verb.german):
        subject = german_np(scene.subject, form, NOM)
        for finite, tail in predicates(verb, scene.tense, agreement(scene.subject, form), "time" in slots):
            yield {**slots, "subject": subject, "finite": (finite,), "tail": (tail,)}


def linearize(order: Sequence[str], slots: dict[str, Sequence[str]], mood: str) -> Iterator[str]:
    """One word order with all choices; an order whose first slot is missing does not apply."""
    if order[0] in slots:
        used = [slot for slot in dict.fromkeys(order) if slot in slots]
        for words in itertools.product(*(slots[slot] for slot in used)):
            yield sentence(words, mood)


def sentence(words: Sequence[str], mood: str) -> str:
    text = spaced(*words)
    return text[0].upper() + text[1:] + ("." if mood == "statement" else "?")


# ------------------------------------------------------------------------------------------------- times
def pick(rng: random.Random, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def number(rng: random.Random, high: int) -> Part:
    n = pick(rng, range(2, high + 1))
    return Part(pick(rng, (ENGLISH_NUMBERS[n], str(n))), (GERMAN_NUMBERS[n], str(n)))


def date(day: int, month: int, year: int | None, american: bool) -> Part:
    """on 3 May 2021 (or May 3rd, 2021) = am 3. Mai 2021 / am dritten Mai 2021 / am 03.05.2021"""
    name = pairs(MONTHS)[month - 1]
    nth = f"{day}{'th' if 10 < day < 20 else ('th', 'st', 'nd', 'rd', *['th'] * 6)[day % 10]}"
    ordinal = ORDINALS.get(day, GERMAN_NUMBERS[day] + ("ten" if day < 20 else "sten"))
    en = f"on {name.en} {nth}" if american else f"on {day} {name.en}"
    de = (f"am {day}. {name.de[0]}", f"am {ordinal} {name.de[0]}")
    if year is None:
        return Part(en, de)
    written = (*(f"{words} {year}" for words in de), f"am {day:02}.{month:02}.{year}")
    return Part(f"{en}{',' if american else ''} {year}", written)


def clock(hour: int, minute: int, digital: bool) -> Part:
    """at half past three (or 3:30 pm) = um halb vier / um 15.30 Uhr, for hours 8 to 19"""
    en_words, de_words, en_next, de_next = CLOCK[minute]
    now, en_hour, de_hour = ((hour + later - 1) % 12 + 1 for later in (0, en_next, de_next))
    digits = f"{now}:{minute}" if minute else f"{now}"
    en = f"{digits} {'am' if hour < 12 else 'pm'}" if digital else en_words.format(ENGLISH_NUMBERS[en_hour])
    de = de_words.format(GERMAN_NUMBERS[de_hour]).replace("eins Uhr", "ein Uhr")
    return Part(f"at {en}", (f"um {de}", f"um {hour}.{minute} Uhr" if minute else f"um {hour} Uhr"))


def draw_date(rng: random.Random, tense: str) -> Part:
    year = pick(rng, (2020, 2021)) if tense == "past" and rng.random() < 0.7 else None
    return date(pick(rng, range(1, 29)), pick(rng, range(1, 13)), year, rng.random() < 0.5)


def draw_clock(rng: random.Random, tense: str) -> Part:
    """A time of day, after its day unless that is to come."""
    at = clock(pick(rng, range(8, 20)), pick(rng, tuple(CLOCK)), rng.random() < 0.4)
    day = pick(rng, pairs(DAYS) + pairs(TIMES[tense])[:1])  # the latter is yesterday or tomorrow
    return at if tense == "future" and rng.random() < 0.5 else joined(day, at)


def draw_time(rng: random.Random, tense: str) -> Part:
    if tense == "present":
        return pick(rng, pairs(TIMES[tense]))
    tense = "past" if tense == "past" else "future"
    draw = pick(rng, (draw_date, draw_date, draw_clock, None, None, None, None))
    return draw(rng, tense) if draw else pick(rng, pairs(TIMES[tense]) + pairs(DAYS))


# ------------------------------------------------------------------------------------------------ scenes
def with_adjective(rng: random.Random, np: NP, probability: float) -> NP:
    table = ADJECTIVES.get(np.kind)
    return np._replace(adjective=pick(rng, pairs(table))) if table and rng.random() < probability else np


def draw_thing(rng: random.Random, kinds: Sequence[str], counted: float = 0.15) -> NP:
    np = pick(rng, nouns(pick(rng, kinds)))
    if rng.random() < counted:
        np = np._replace(count=number(rng, 12))
    elif np.kind in ("drink", "ware"):
        np = np._replace(det="a")
    else:
        np = np._replace(det=pick(rng, ("a", "a", "a", "the", "the", "the", "this", pick(rng, POSSESSIVES))))
    return with_adjective(rng, np, 0.35)


def draw_person(rng: random.Random, other: NP | None = None, pronouns: float = 0.4) -> NP:
    """Someone; with `other`, someone else, whom no pronoun can confuse with `other`."""
    if rng.random() < pronouns:
        told = other is not None and other.en in SPEAKERS
        return pick(rng, [np for np in nouns("pronoun") if other is None or told != (np.en in SPEAKERS)])
    kind = pick(rng, ("kin", "kin", "people", "name"))
    np = pick(rng, [np for np in nouns(kind) if other is None or np.en != other.en])
    dets = {"kin": POSSESSIVES, "people": ("the", "this"), "name": ("",)}[kind]
    return with_adjective(rng, np._replace(det=pick(rng, dets)), 0.1)


def draw_city(rng: random.Random, english: str, german: str) -> Part:
    return joined(Part(english, (german,)), pick(rng, pairs(CITIES)))


def draw_place(rng: random.Random) -> Part:
    return draw_city(rng, "in", "in") if rng.random() < 0.4 else pick(rng, pairs(PLACES))


def draw_tense(rng: random.Random, verb: Verb) -> str:
    planned = ("future", "future", "can", "must", "want to", "should")
    return pick(rng, ("present",) * 5 + ("past",) * 3 + planned * (verb.base not in UNPLANNED))


def compose(rng: random.Random, subject: NP, verb: Verb, parts: dict[str, Part]) -> Scene:
    """Choose the tense, the kind of sentence and the time."""
    tense, mood = draw_tense(rng, verb), pick(rng, ("statement",) * 7 + ("question",) * 2 + ("why",))
    if mood == "why":
        return Scene(subject, verb, tense, mood, {**parts, "why": Part("why", ("warum", "wieso"))})
    if rng.random() < 0.35 or (tense == "past" and mood == "statement"):
        parts = {**parts, "time": draw_time(rng, tense)}
    return Scene(subject, verb, tense, mood, parts, mood == "statement" and "time" in parts and rng.random() < 0.2)


def draw_action(rng: random.Random) -> Scene:
    """Definite objects come before the time in German; the others, and all things given to someone, after it."""
    subject, verb = draw_person(rng), pick(rng, verbs(ACTIONS))
    kind, flags = pick(rng, verb.kinds), verb.german[0].flags
    thing = draw_person(rng, subject, 0.3) if kind == "person" else draw_thing(rng, (kind,))
    if "+dat" in flags:
        return compose(rng, subject, verb, {"dative": np_part(thing, DAT)})
    if "+gift" in flags:
        receiver = np_part(draw_person(rng, subject), DAT)
        return compose(rng, subject, verb, {"dative": receiver, "indefinite": np_part(thing, ACC)})
    parts = {"indefinite" if thing.count.en or thing.det == "a" else "definite": np_part(thing, ACC)}
    return compose(rng, subject, verb, {**parts, "place": draw_place(rng)} if rng.random() < 0.35 else parts)


def draw_motion(rng: random.Random) -> Scene:
    subject, verb = draw_person(rng), pick(rng, verbs(MOTIONS))
    city = draw_city(rng, "to", "nach")
    parts = {"goal": pick(rng, pairs(NEAR) if "near" in verb.kinds else pairs(FAR) + (city,) * 8)}
    if rng.random() < 0.4:
        company = joined(Part("with", ("mit",)), np_part(draw_person(rng, subject, 0), DAT))
        parts["manner"] = pick(rng, pairs(MEANS)) if "means" in verb.kinds else company
    return compose(rng, subject, verb, parts)


def draw_event(rng: random.Random) -> Scene:
    """Events are on a timetable, for which both languages use the present."""
    verb = pick(rng, verbs(EVENTS))
    event = pick(rng, nouns(verb.kinds[0]))._replace(det=pick(rng, ("the", "the", "this", "our")))
    tense = pick(rng, ("present", "present", "past", "future"))
    parts = {"time": draw_clock(rng, "past" if tense == "past" else "future")}
    if rng.random() < 0.4:
        city = draw_city(rng, "from" if verb.base == "leave" else "in", "in")
        parts["place"] = city if event.kind == "transport" else draw_place(rng)
    return Scene(event, verb, tense, pick(rng, ("statement", "statement", "question")), parts)


def draw_money(rng: random.Random) -> Scene:
    """A thing costs 25 euros, or someone pays them for it."""
    verb = pick(rng, verbs(MONEY))
    price = {"indefinite": joined(number(rng, 28), Part("euros", ("Euro",)))}
    thing = draw_thing(rng, verb.kinds, counted=0)
    if verb.base == "cost":
        return compose(rng, thing, verb, {**price, "place": draw_place(rng)})
    bought = joined(Part("for", ("für",)), np_part(thing, ACC))
    return compose(rng, draw_person(rng), verb, {**price, "manner": bought})


FAMILIES = (draw_action,) * 11 + (draw_motion,) * 4 + (draw_event,) * 3 + (draw_money,) * 2


# ---------------------------------------------------------------------------------------------- the corpus
def sources(rng: random.Random, count: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """`count` different sources, each with all its targets."""
    seen: set[str] = set()
    for _ in range(20 * count + 1000):
        if len(seen) == count:
            return
        scene = pick(rng, FAMILIES)(rng)
        source, variants = english(scene), targets(scene)
        texts = (source, *variants)
        if source not in seen and len(variants) <= MOST_TARGETS and all(len(text.split()) in WORDS for text in texts):
            seen.add(source)
            yield source, variants
    raise ValueError(f"the grammar gave only {len(seen)} of {count} different sources")


def shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    rest = list(items)
    return [rest.pop(int(rng.random() * len(rest))) for _ in items]


def build(count: int, seed: int, held_out: int) -> tuple[dict[str, list[str]], dict[str, float]]:
    """The lines of each file, and the figures.

    The held-out sets are drawn first, so they do not depend on the size of the training set.  A source with too few
    targets repeats them in the further references.
    """
    rng, files, sizes, lengths = random.Random(seed), {}, [], []
    splits = ["test"] * held_out + ["valid"] * held_out + ["train"] * count
    for split, (source, variants) in zip(splits, sources(rng, len(splits))):
        order = shuffled(rng, variants)
        files.setdefault(f"{split}.en", []).append(source)
        files.setdefault(f"{split}.de", []).append(order[0])
        for i in range(1, EXTRA + 1) if split == "test" else ():
            files.setdefault(f"test.de.{i}", []).append(order[i % len(order)])
        sizes.append(len(variants))
        lengths.append(len(order[0].split()))
    distinct = {source for split in ("train", "valid", "test") for source in files[f"{split}.en"]}
    return files, {"distinct sources": len(distinct), **figures(sizes, lengths)}


def figures(sizes: Sequence[int], lengths: Sequence[int]) -> dict[str, float]:
    total = len(sizes)
    return {
        "pairs": total,
        "valid targets a source": round(sum(sizes) / total, 2),
        "share with 3 or more": round(sum(size >= 3 for size in sizes) / total, 3),
        "words a target": round(sum(lengths) / total, 2),
    }


def write_corpus(out: Path, count: int, seed: int, held_out: int = HELD_OUT) -> str:
    """Write all files, the record last; returns the line to print."""
    grammar = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    wanted = {"pairs": count, "held_out": held_out, "seed": seed, "grammar": grammar}
    record = out / "corpus.json"
    if holds(record, wanted):
        return f"{out} already holds this corpus ({count} training pairs, seed {seed}): nothing to do"
    out.mkdir(parents=True, exist_ok=True)
    files, counts = build(count, seed, held_out)
    record.unlink(missing_ok=True)
    for name, lines in files.items():
        write(out / name, "".join(f"{line}\n" for line in lines))
    write(record, json.dumps({**wanted, "files": sorted(files), "figures": counts}, indent=2) + "\n")
    return f"{out}: " + ", ".join(f"{value} {name}" for name, value in counts.items())


def write(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8"))  # bytes: no platform's own line ends


def holds(record: Path, wanted: dict[str, object]) -> bool:
    """Whether an earlier run finished the same corpus and its files are still there."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        same = all(found[key] == value for key, value in wanted.items())
        return same and all((record.parent / name).is_file() for name in found["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--pairs", type=int, default=30000, help="training pairs (default 30000)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    if args.pairs < 1:
        parser.error("--pairs must be at least 1")
    try:
        print(write_corpus(args.out, args.pairs, args.seed))
    except (OSError, ValueError) as error:
        sys.exit(f"corpus.py: {error}")


if __name__ == "__main__":
    main()
