"""Checks of the bundled data set in data/assistant: its format, its splits, its duplicates and what its README states.

Every check is a helper that returns a list of problems in words, empty when all is well. Each helper is run on the
real files and, in a planted-fault test, on a copy with one fault put in, so that a check that finds nothing is known
to be able to find something.
"""

import csv
import hashlib
import re
import string
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import pytest
from sklearn.feature_extraction.text import CountVectorizer

DATA_DIR = Path(__file__).resolve().parents[1] / "data" / "assistant"
SPLITS = ("train", "dev", "test")
COLUMNS = ["id", "text", "label", "style"]
STYLES = {"everyday", "hard"}
ID_PREFIX = {"train": "tr", "dev": "de", "test": "te"}
INTENT_COUNT = 20
MAX_CLASS_RATIO = 1.3
# The test split was written and fixed before any model saw it; only train may be revised.
TEST_SHA256 = "fd29cbadf8a95df80f28d560c3145fb5e76cd244fd57ba22b9d591cd1644bb91"
JACCARD_THRESHOLD = 0.5
MAX_NEAR_DUPLICATE_SHARE = 0.005
TEMPLATE_MIN_WORDS = 4
MAX_TEMPLATE_PAIRS_ACROSS_SPLITS = 0

NUMBER_WORDS = frozenset(
    [
        "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
        "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty", "thirty",
        "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred", "thousand", "half", "quarter", "first",
        "second", "third", "fourth", "fifth",
    ]
)  # fmt: skip
DAY_WORDS = frozenset(
    [
        "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", "today", "tonight",
        "tomorrow", "tmrw", "tmr",
    ]
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------- reading


def read_split(folder, split):
    """Return the rows of one split as dictionaries."""
    with (Path(folder) / f"{split}.csv").open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def read_all(folder):
    """Return {split: rows} for the three splits."""
    return {split: read_split(folder, split) for split in SPLITS}


def flatten(rows_by_split):
    """Return [(split, row)] over all splits, in a fixed order."""
    return [(split, row) for split in SPLITS for row in rows_by_split[split]]


# ---------------------------------------------------------------------------------------------------- format checks


def encoding_problems(path):
    """Name a byte order mark, a carriage return, bytes that are not UTF-8, and a missing or doubled last newline."""
    raw, problems = Path(path).read_bytes(), []
    if raw.startswith(b"\xef\xbb\xbf"):
        problems.append(f"{path.name}: starts with a byte order mark")
    if b"\r" in raw:
        problems.append(f"{path.name}: holds a carriage return, lines must end in LF")
    if not raw.endswith(b"\n") or raw.endswith(b"\n\n"):
        problems.append(f"{path.name}: must end in exactly one newline")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        problems.append(f"{path.name}: not UTF-8 ({error})")
    return problems


def column_problems(path):
    """Name a wrong header, a row with the wrong number of cells, and cells that are empty or padded with blanks."""
    with path.open(encoding="utf-8", newline="") as handle:
        header, *rows = list(csv.reader(handle))
    problems = [] if header == COLUMNS else [f"{path.name}: header is {header}, expected {COLUMNS}"]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(COLUMNS):
            problems.append(f"{path.name} row {number}: {len(row)} cells, expected {len(COLUMNS)}")
        elif any(not cell or cell != cell.strip() or "\n" in cell for cell in row):
            problems.append(f"{path.name} row {number}: an empty, padded or multi-line cell in {row}")
    return problems


def id_problems(rows_by_split):
    """Name ids that occur twice over all splits or do not look like their split's prefix and four digits."""
    rows = flatten(rows_by_split)
    times = Counter(row["id"] for _, row in rows)
    problems = [f"id {name} occurs {count} times" for name, count in times.items() if count > 1]
    for split, row in rows:
        if not re.fullmatch(rf"{ID_PREFIX[split]}-\d{{4}}", row["id"]):
            problems.append(f"id {row['id']} in {split} should look like {ID_PREFIX[split]}-0001")
    return problems


def label_problems(rows_by_split):
    """Name labels that are not snake_case, are missing from a split, or are not INTENT_COUNT in number."""
    sets = {split: {row["label"] for row in rows} for split, rows in rows_by_split.items()}
    everything = set().union(*sets.values())
    problems = [f"{len(everything)} intents, expected {INTENT_COUNT}"] if len(everything) != INTENT_COUNT else []
    odd = [name for name in everything if not re.fullmatch(r"[a-z]+(_[a-z]+)*", name)]
    problems += [f"label {name!r} is not snake_case" for name in odd]
    problems += [f"{split} lacks {sorted(everything - seen)}" for split, seen in sets.items() if seen != everything]
    return sorted(problems)


def style_problems(rows_by_split):
    """Name rows whose style is not one of STYLES, and splits that lack a style."""
    problems = [
        f"{row['id']}: style is {row['style']!r}, expected everyday or hard"
        for _, row in flatten(rows_by_split)
        if row["style"] not in STYLES
    ]
    for split, rows in rows_by_split.items():
        missing = STYLES - {row["style"] for row in rows}
        problems += [f"{split} has no {style} rows" for style in sorted(missing)]
    return problems


def fixed_test_problems(path):
    """Name a test file that is not, byte for byte, the one that was fixed."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    return [] if found == TEST_SHA256 else [f"{path.name}: SHA-256 is {found}, expected {TEST_SHA256}"]


def balance_problems(rows_by_split):
    """Name splits whose most frequent label has more than MAX_CLASS_RATIO times the rows of the rarest."""
    problems = []
    for split, rows in rows_by_split.items():
        counts = Counter(row["label"] for row in rows)
        ratio = max(counts.values()) / min(counts.values())
        if ratio > MAX_CLASS_RATIO:
            problems.append(f"{split}: largest to smallest class is {ratio:.2f}, allowed {MAX_CLASS_RATIO}")
    return problems


# ---------------------------------------------------------------------------------------------------- duplicates


def normalise(text):
    """Lower-case, drop punctuation and squeeze blanks, so that only the words count."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def exact_duplicate_problems(rows_by_split):
    """Name groups of rows, within or across splits, whose texts are equal once normalised."""
    groups = defaultdict(list)
    for _, row in flatten(rows_by_split):
        groups[normalise(row["text"]).replace(" ", "")].append(row)
    equal = [rows for rows in groups.values() if len(rows) > 1]
    return [f"{', '.join(row['id'] for row in rows)} all say {rows[0]['text']!r}" for rows in equal]


def near_duplicate_pairs(rows_by_split, threshold=JACCARD_THRESHOLD):
    """Return [(split a, row a, split b, row b, similarity)] for pairs at or above the threshold.

    The measure is the Jaccard index of the sets of character 4-grams of the normalised texts, a blank on both ends.
    Characters rather than words, because these texts are short and full of typos, dropped apostrophes and run-together
    words, which would hide a copied sentence from a word-level measure. At 0.5 two texts share half of all their
    4-grams: one changed name in a sentence of eight words is above it, two sentences of the same pattern with
    different content are below it and are left to the template check.
    """
    rows = flatten(rows_by_split)
    vectoriser = CountVectorizer(analyzer="char", ngram_range=(4, 4), binary=True, lowercase=False)
    grams = vectoriser.fit_transform([f" {normalise(row['text'])} " for _, row in rows])
    sizes = grams.sum(axis=1).A1
    shared = (grams @ grams.T).tocoo()
    left, right = shared.row, shared.col
    similarity = shared.data / (sizes[left] + sizes[right] - shared.data)
    found = (left < right) & (similarity >= threshold)
    return [
        (*rows[i], *rows[j], float(value))
        for i, j, value in zip(left[found], right[found], similarity[found], strict=True)
    ]


def within_and_across(pairs):
    """Split near-duplicate pairs into (count within one split, count across two splits)."""
    within = sum(pair[0] == pair[2] for pair in pairs)
    return within, len(pairs) - within


def near_duplicate_problems(rows_by_split):
    """Complain when the pairs are more than MAX_NEAR_DUPLICATE_SHARE of the rows; list what was found."""
    pairs = near_duplicate_pairs(rows_by_split)
    share = len(pairs) / len(flatten(rows_by_split))
    if share <= MAX_NEAR_DUPLICATE_SHARE:
        return []
    found = [f"{a['id']} {a['text']!r} ~ {b['id']} {b['text']!r} ({value:.2f})" for _, a, _, b, value in pairs]
    return [f"near duplicates are {share:.2%} of the rows, allowed {MAX_NEAR_DUPLICATE_SHARE:.2%}", *found]


# ---------------------------------------------------------------------------------------------------- templates


def names_used(texts):
    """Return, in lower case, the words written Capitalised inside a sentence somewhere: names of people and places.

    The texts write many names in lower case too, so a name seen once with its capital is masked everywhere.
    """
    return {word.lower() for text in texts for word in re.findall(r"(?<![.?!:'])\s([A-Z][a-z]+)", text)}


def mask(text, names):
    """Return the words of a text with numbers as <num>, weekdays as <day> and names as <name>."""
    masked = []
    for word in re.findall(r"[a-z0-9']+", text.lower().replace("o'clock", "")):
        if any(char.isdigit() for char in word) or word in NUMBER_WORDS:
            word = "<num>"
        elif word in DAY_WORDS:
            word = "<day>"
        elif word in names:
            word = "<name>"
        masked.append(word)
    return tuple(masked)


def within_one_edit(left, right):
    """Say whether at most one inserted, removed or replaced word turns one word sequence into the other."""
    if abs(len(left) - len(right)) > 1:
        return False
    head = 0
    while head < min(len(left), len(right)) and left[head] == right[head]:
        head += 1
    rest_left, rest_right = left[head:], right[head:]
    return (
        rest_left[1:] == rest_right[1:]
        or (len(left) > len(right) and rest_left[1:] == rest_right)
        or (len(left) < len(right) and rest_left == rest_right[1:])
    )


def template_pairs(rows_by_split):
    """Return [(split a, row a, split b, row b)] whose masked words are equal or differ by one word.

    Texts with fewer than TEMPLATE_MIN_WORDS words pair only when their masked words are equal, since most two-word
    commands are one edit away from one another. Two sequences one edit apart are equal after one word is taken from
    each, so only texts that share such a shortened form are compared.
    """
    rows = flatten(rows_by_split)
    names = names_used(row["text"] for _, row in rows)
    masked = [mask(row["text"], names) for _, row in rows]
    buckets = defaultdict(set)
    for index, words in enumerate(masked):
        buckets[words].add(index)
        if len(words) >= TEMPLATE_MIN_WORDS:
            for position in range(len(words)):
                buckets[words[:position] + words[position + 1 :]].add(index)
    candidates = {pair for members in buckets.values() for pair in combinations(sorted(members), 2)}
    return [(*rows[i], *rows[j]) for i, j in sorted(candidates) if same_template(masked[i], masked[j])]


def same_template(left, right):
    """Say whether two masked texts count as one template: equal, or one edit apart when both are long enough."""
    if min(len(left), len(right)) < TEMPLATE_MIN_WORDS:
        return left == right
    return within_one_edit(left, right)


def template_problems(rows_by_split):
    """Name template pairs across two splits when there are more than MAX_TEMPLATE_PAIRS_ACROSS_SPLITS."""
    across = [pair for pair in template_pairs(rows_by_split) if pair[0] != pair[2]]
    if len(across) <= MAX_TEMPLATE_PAIRS_ACROSS_SPLITS:
        return []
    return [f"{a['id']} {a['text']!r} is of one template with {b['id']} {b['text']!r}" for _, a, _, b in across]


# ---------------------------------------------------------------------------------------------------- README


def stated_figures(readme):
    """Return the pairs within and across splits that the README states for each measure; None where it does not."""
    figures = {}
    for measure in ("near-duplicate", "same-template"):
        found = re.search(rf"\|\s*{measure}[^|]*\|\s*(\d+)\s*\|\s*(\d+)\s*\|", readme)
        figures[measure] = (int(found[1]), int(found[2])) if found else None
    return figures


def stated_counts(readme):
    """Return {intent or style: (train, dev, test)} as the README's tables state them; the row `all` is among them."""
    rows = re.findall(r"^\|\s*`?([a-z_]+)`?\s*\|\s*(\d+)\s*\|\s*(\d+)\s*\|\s*(\d+)\s*\|", readme, flags=re.M)
    return {name: tuple(int(count) for count in counts) for name, *counts in rows}


def readme_problems(readme, rows_by_split):
    """Name a missing licence note, an intent without a definition, and every stated figure that is not true."""
    problems = [] if "CC0-1.0" in readme and "public domain" in readme else ["the README lacks the CC0-1.0 note"]
    intents = {row["label"] for _, row in flatten(rows_by_split)}
    counts = {
        split: Counter(name for row in rows for name in (row["label"], row["style"], "all"))
        for split, rows in rows_by_split.items()
    }
    true = {name: tuple(counts[split][name] for split in SPLITS) for name in sorted(set().union(*counts.values()))}
    stated = stated_counts(readme)
    for name in sorted(true.keys() | stated.keys()):
        if true.get(name) != stated.get(name):
            problems.append(f"counts of {name}: the README states {stated.get(name)}, the files hold {true.get(name)}")
    problems += [f"no definition of {name}" for name in sorted(intents) if f"- **`{name}`**" not in readme]
    found = {
        "near-duplicate": within_and_across(near_duplicate_pairs(rows_by_split)),
        "same-template": within_and_across(template_pairs(rows_by_split)),
    }
    for name, value in stated_figures(readme).items():
        if value != found[name]:
            problems.append(f"{name} pairs (within, across): the README states {value}, counted {found[name]}")
    return problems


# ---------------------------------------------------------------------------------------------------- the real files


@pytest.fixture(scope="module")
def rows_by_split():
    """The rows of the bundled data set."""
    return read_all(DATA_DIR)


def report(problems):
    """Put problems into one message, the first thirty of them."""
    return "\n".join([f"{len(problems)} problem(s):", *problems[:30]])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("check", [encoding_problems, column_problems])
def test_files_are_well_formed(split, check):
    problems = check(DATA_DIR / f"{split}.csv")
    assert not problems, report(problems)


@pytest.mark.parametrize(
    "check",
    [
        id_problems,
        label_problems,
        style_problems,
        balance_problems,
        exact_duplicate_problems,
        near_duplicate_problems,
        template_problems,
    ],
)
def test_rows_are_sound(rows_by_split, check):
    problems = check(rows_by_split)
    assert not problems, report(problems)


def test_near_duplicate_figures_are_printed(rows_by_split):
    """The figures are shown under pytest -s, so that a reader need not take the share on trust."""
    near, templates = near_duplicate_pairs(rows_by_split), template_pairs(rows_by_split)
    total = len(flatten(rows_by_split))
    print(f"\n(within, across) splits, of {total} rows")
    print(f"Jaccard of character 4-grams >= {JACCARD_THRESHOLD}: {within_and_across(near)}")
    print(f"same template after masking: {within_and_across(templates)}")
    for _, a, _, b, *_ in near + templates:
        print(f"  {a['id']} {a['text']!r} ~ {b['id']} {b['text']!r}")
    assert len(near) <= MAX_NEAR_DUPLICATE_SHARE * total


def test_test_split_is_the_fixed_one():
    problems = fixed_test_problems(DATA_DIR / "test.csv")
    assert not problems, report(problems)


def test_readme_is_true(rows_by_split):
    problems = readme_problems((DATA_DIR / "README.md").read_text(encoding="utf-8"), rows_by_split)
    assert not problems, report(problems)


# ---------------------------------------------------------------------------------------------------- planted faults


@pytest.fixture
def copy(tmp_path):
    """A copy of the data set that a test may spoil."""
    for split in SPLITS:
        (tmp_path / f"{split}.csv").write_bytes((DATA_DIR / f"{split}.csv").read_bytes())
    return tmp_path


def append_row(folder, split, *cells):
    """Put one row at the end of a split of the copy and return the rows of all splits."""
    with (folder / f"{split}.csv").open("a", encoding="utf-8", newline="") as handle:
        csv.writer(handle, lineterminator="\n").writerow(cells)
    return read_all(folder)


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda raw: b"\xef\xbb\xbf" + raw, "byte order mark"),
        (lambda raw: raw.replace(b"\n", b"\r\n"), "carriage return"),
        (lambda raw: raw + b"\n", "newline"),
        (lambda raw: raw[:-1] + b"\xff\n", "not UTF-8"),
    ],
)
def test_planted_encoding_fault_is_found(copy, spoil, word):
    path = copy / "dev.csv"
    path.write_bytes(spoil(path.read_bytes()))
    assert any(word in problem for problem in encoding_problems(path))


@pytest.mark.parametrize(
    ("cells", "word"),
    [
        (("de-9999", "only two"), "2 cells"),
        (("de-9999", "", "take_note", "hard"), "empty"),
        (("de-9999", " x", "take_note", "hard"), "padded"),
    ],
)
def test_planted_column_fault_is_found(copy, cells, word):
    append_row(copy, "dev", *cells)
    assert any(word in problem for problem in column_problems(copy / "dev.csv"))


def test_planted_header_fault_is_found(copy):
    path = copy / "train.csv"
    path.write_bytes(path.read_bytes().replace(b"id,text,label,style", b"id,label,text,style", 1))
    assert any("header" in problem for problem in column_problems(path))


def test_planted_id_faults_are_found(copy):
    rows = append_row(copy, "test", "tr-0001", "an id that train has already", "take_note", "hard")
    assert {"id tr-0001 occurs 2 times", "id tr-0001 in test should look like te-0001"} <= set(id_problems(rows))


def test_planted_label_fault_is_found(copy):
    problems = label_problems(append_row(copy, "test", "te-9999", "some words", "Take-Note", "hard"))
    assert "label 'Take-Note' is not snake_case" in problems
    assert "train lacks ['Take-Note']" in problems
    assert f"{INTENT_COUNT + 1} intents, expected {INTENT_COUNT}" in problems


def test_planted_style_faults_are_found(copy):
    rows = append_row(copy, "dev", "de-9999", "some words", "take_note", "Hard")
    rows["train"] = [row for row in rows["train"] if row["style"] == "hard"]
    assert style_problems(rows) == [
        "de-9999: style is 'Hard', expected everyday or hard",
        "train has no everyday rows",
    ]


def test_planted_change_of_test_is_found(copy):
    """One row more is enough."""
    append_row(copy, "test", "te-9999", "some words", "take_note", "hard")
    assert len(fixed_test_problems(copy / "test.csv")) == 1


def test_planted_imbalance_is_found(copy):
    rows = read_all(copy)
    rows["dev"] = rows["dev"] + [row for row in rows["dev"] if row["label"] == "take_note"]
    assert len(balance_problems(rows)) == 1


@pytest.mark.parametrize("split", SPLITS)
def test_planted_duplicate_is_found(copy, split):
    """A train text with other capitals, punctuation and blanks is found in each split."""
    text = read_split(copy, "train")[7]["text"]
    rows = append_row(copy, split, f"{ID_PREFIX[split]}-9999", f"  {text.upper()} ?!", "take_note", "hard")
    assert any("-9999" in problem for problem in exact_duplicate_problems(rows))


def test_planted_near_duplicates_are_found(copy):
    """A copied sentence with one word changed is counted, and enough of them fail the check."""
    before = within_and_across(near_duplicate_pairs(read_all(copy)))
    long_rows = [row for row in read_split(copy, "train") if len(row["text"].split()) >= 12][:30]
    for number, row in enumerate(long_rows):
        words = row["text"].split()
        words[3] = "something"
        rows = append_row(copy, "test", f"te-99{number:02d}", " ".join(words), row["label"], "hard")
    assert within_and_across(near_duplicate_pairs(rows)) == (before[0], before[1] + len(long_rows))
    assert near_duplicate_problems(rows)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("please ask Gustav to bring 4 folding chairs", "please ask petra to bring twelve folding chairs"),
        ("my bus pass lives behind the kettle", "my spare bus pass lives behind the kettle"),
        ("my bus pass lives behind the kettle", "my bus pass lives behind the toaster"),
        ("burpees 40", "burpees 50"),
    ],
)
def test_planted_template_is_found(copy, left, right):
    """A sentence with another name, number or single word is of the same template."""
    append_row(copy, "train", "tr-9999", left, "take_note", "hard")
    problems = template_problems(append_row(copy, "test", "te-9999", right, "take_note", "hard"))
    assert any("tr-9999" in problem and "te-9999" in problem for problem in problems)


@pytest.mark.parametrize(
    ("left", "right", "close"),
    [("a b c d", "a b c d", True), ("a b c d", "a x c d", True), ("a b c d", "a b c", True), ("b c d", "a b c d", True),
     ("a b c d", "a x c y", False), ("a b c d", "b c d e", False), ("a b", "a b c d", False)],
)  # fmt: skip
def test_one_edit_is_told_from_two(left, right, close):
    assert within_one_edit(left.split(), right.split()) is close


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("CC0-1.0", "MIT", "CC0-1.0 note"),
        ("| `take_note` | 142 |", "| `take_note` | 143 |", "counts of take_note"),
        ("| all | 2641 |", "| all | 2642 |", "counts of all"),
        ("| hard | 758 |", "| hard | 759 |", "counts of hard"),
        ("- **`take_note`**", "- take_note", "no definition of take_note"),
        ("| near-duplicate", "| nearly", "near-duplicate pairs"),
        ("| same-template", "| similar", "same-template pairs"),
    ],
)
def test_planted_readme_fault_is_found(rows_by_split, old, new, word):
    readme = (DATA_DIR / "README.md").read_text(encoding="utf-8")
    assert old in readme, f"the README no longer holds {old!r}, so this test plants nothing"
    assert any(word in problem for problem in readme_problems(readme.replace(old, new), rows_by_split))
