"""The wording of a text: what two near-duplicates have in common."""

import html
import re
import unicodedata

# Only names that are no words of a reviewer: <sigh> and <grin> stay.
_TAG = re.compile(r"</?(?:a|b|blockquote|br|div|em|hr|i|li|ol|p|pre|q|small|span|strong|tt|u|ul) */?>")
_MARKS = r""".,;!?"“”„‘'"""
# Beside a symbol a mark may be half a smiley. Apostrophes inside a word make it another word, points another number.
_MARK = re.compile(rf"""[{_MARKS}](?=[\s\w{_MARKS}]|$)(?!_)(?<!_.)(?<![^\w\s{_MARKS}].)(?<!\w'(?=\w))(?<![.,](?=\d))""")


def fold(text: str) -> str:
    """The words and symbols of a text in their order, without regard to how they are set.

    Two texts fold to the same where they differ only in case, in HTML's escapes and tags of layout, in spacing, in
    Unicode form (NFKC), or in full stops, commas, semicolons, question, exclamation and quotation marks. Smileys and
    other symbols, numbers, and apostrophes inside a word count. A text of which nothing would be left stays as it is.
    """
    plain = html.unescape(text) if "&" in text else text
    plain = unicodedata.normalize("NFKC", plain.replace("\ufeff", " ").replace("\u200b", " ")).casefold()
    if "<" in plain:
        plain = _TAG.sub(" ", plain)
    return " ".join(_MARK.sub(" ", plain.replace("’", "'")).split()) or text
