"""Phrases that may not return to code and docs, each with what to write instead.

    python .ci/phrases.py            every tracked text file
    python .ci/phrases.py FILE...    these files

They were written as a translator would; readers stumble over them. A line that must hold one of them, because it reads
an old key of a user's file, has the comment `old spelling`.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENDINGS = {".py", ".sh", ".md", ".args", ".sbatch", ".css", ".toml", ".yaml", ".txt"}
KEPT = "old spelling"

# Pattern -> what to write. A blank of a pattern also stands for a line break, with the comment sign behind it.
PHRASES = {
    r"(goes|go|went|going|gone) on (where|from|with)": "resumes, continues",
    r"\banew\b": "again",
    r"\bafresh\b": "from the start",
    r"\bleav(e|es|ing|e out) \S+( of them)? away\b": "omit",
    r"\b(is|are) no (plain|regular|file|folder|list|slide|model|number|step|set)\b": "is not a ...",
    r"\bplain file\b": "regular file",
    r"\b(is|are) there and\b": "exists but",
    r"\bis none of\b": "must be one of",
    r"\bgive another\b": "choose another",
    r"\bwords of (a|the) command": "arguments",
    r"(?<!word\s)\bin words\b(?![:)\]])": "as text, a description",
    r"\bwhoever\b": "anyone who, the process that",
    r"\bnothing but\b": "only",
    r"\b(say|says|said) so\b": "reported, logged, with a message",
    r"\b(is|are|was|were) told\b": "is reported, is given",
    r"\bwhat there is to\b": "what to ..., the ... to ...",
    r"\basked to leave\b": "asked to stop, preempted",
    r"\bsigns? of life\b": "heartbeat",
    r"\bmend(s|ed)?\b": "repair",
    r"\bfrom nothing\b": "from the beginning",
    r"\bso many\b": "that many, this many",
}
SPELLINGS = {r"tumour": "tumor", r"centre": "center", r"colour": "color"}


def line_pattern(phrase: str) -> re.Pattern[str]:
    """A phrase that may run over the end of a line, also in comments."""
    return re.compile(phrase.replace(" ", r"(?: |\n[ #>*]*)"), re.IGNORECASE)


def faults(text: str, spelling: bool = True) -> list[tuple[int, str, str]]:
    """Line, phrase found and what to write, in the order of lines; `spelling`: also look for spellings."""
    found = []
    lines = text.splitlines()
    for phrase, wanted in (PHRASES | (SPELLINGS if spelling else {})).items():
        for match in line_pattern(phrase).finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            if KEPT not in lines[line - 1]:
                found.append((line, " ".join(match.group().split()), wanted))
    return sorted(found)


def tracked() -> list[Path]:
    """Every tracked text file."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in done.stdout.split("\0") if name]


def main(names: list[str]) -> int:
    """Entry point; 1 when a phrase was found."""
    count = 0
    for path in [Path(name).resolve() for name in names] or tracked():
        # This table and its test hold all of them.
        if path.suffix not in ENDINGS or path.name in ("phrases.py", "test_phrases.py") or not path.is_file():
            continue
        name = path.relative_to(ROOT).as_posix()
        # Tests write old files of users, with the keys they had.
        for line, phrase, wanted in faults(path.read_text(encoding="utf-8"), not name.startswith("tests/")):
            count += 1
            print(f"{name}:{line}: {phrase!r}: write {wanted}")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
