"""Prompts of many kinds for a tokenizer: languages, scripts, symbols, spaces, control characters, lengths, odd text."""

# ruff: noqa: RUF001  (letters that look like others are wanted here)

import random
import unicodedata
from collections.abc import Iterator

ENGLISH = (
    "A red fox runs through deep snow at dawn",
    "The camera pans slowly over a rocky coastline; waves crash, gulls cry, and the sun sets behind the lighthouse.",
    "a cat",
    "UPPER CASE and CamelCase, snake_case, kebab-case",
    "4K, 24 fps, f/1.8, ISO-800, 3.14159, 1,000,000 and 50% of $20 (approx.)",
    "It's the director's cut: \"don't look now\" -- she said... & left?!",
    "https://example.org/a?b=c#d user@example.org C:\\clips\\fox.mp4 ~/clips/*.mp4",
    "worst quality, inconsistent motion, blurry, jittery, distorted",
)
LANGUAGES = (
    "Ein Fuchs läuft über die verschneite Straße, größer als üblich",
    "Un renard traverse la forêt enneigée à l’aube, ça brille, « fleur »",
    "O vulpe aleargă prin zăpada adâncă, în zori, ținând șirul",
    "Un zorro corre por la nieve: ¿qué mañana, señor?",
    "Lis biegnie przez głęboki śnieg, żółć, gęślą jaźń",
    "Kar üzerinde koşan bir tilki, İstanbul'da ılık ışık",
    "Con cáo đỏ chạy qua lớp tuyết dày lúc bình minh",
    "Рыжая лиса бежит по глубокому снегу на рассвете",
    "Μια κόκκινη αλεπού τρέχει στο χιόνι",
    "红色的狐狸在雪地里奔跑",
    "一隻紅色的狐狸, a red fox, 雪",
    "赤いキツネが深い雪の中を走る",
    "붉은 여우가 눈 속을 달린다",
    "ثعلب أحمر يركض عبر الثلج العميق",
    "שׁוּעָל אָדֹם רָץ בַּשֶּׁלֶג",
    "एक लाल लोमड़ी बर्फ में दौड़ती है",
    "สุนัขจิ้งจอกสีแดงวิ่งผ่านหิมะ",
    "წითელი მელა თოვლში",
    "ቀይ ቀበሮ በበረዶ ውስጥ",
    "\u202bfox ثعلب fox\u202c \u2067שועל\u2069",
)
SYMBOLS = (
    "🦊 runs through ❄️",
    "family 👨‍👩‍👧‍👦 waves 👋🏽, flag 🇩🇪, keycap 1️⃣",
    "🦊🦊🦊",
    "½ cup, ² and ₂, № 5, ℡, ™, ©, €, ﬁne ﬂow, Ｆｕｌｌ　ｗｉｄｔｈ, ⅷ, ㎏, ①",
    "→ ← ∞ ≠ ∑ √ π ♪ ★ ■ ▁ ░ ─",
    "\u2581a\u2581\u2581b",
    "cœur, æther, Łódź, ðorn and ﬆ",
    "…“quoted” ‘text’ – em—dash • bullet",
    "e\u0301 a\u0308 n\u0303 o\u0302\u0301 A\u030a \u1e9e \u0130",
    "z\u0351\u0352\u0353a\u0300\u0301\u0302\u0303l\u0334\u0335g\u0336o",
    "𝔉𝔬𝔵 𝕗𝕠𝕩 𝖋𝖔𝖝 \U0001d54f",
)
SPECIAL = (
    "a fox <extra_id_0> in <extra_id_99>the snow",
    "<extra_id_100> and <extra_id_07> are no tokens, <extra_id_7> is",
    "a </s> b",
    "x<pad>y <unk>z",
    "</s> first",
    "<s> <0x41> [MASK] </S> < /s>",
)
# The official tokenizer adds no second end to these.
ENDED = ("a fox</s>", "a fox </s> ", "</s>", "<pad></s>")
_SPACES = [chr(code) for code in range(0x110000) if chr(code).isspace()]
_CONTROLS = [chr(code) for code in (*range(0x20), 0x7F, 0x85, 0xA0, 0xAD)]
_INVISIBLE = [
    *"\u180e\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u202d\ufeff\ufffc\ufffd",
    "\ue000",
    "\uffff",
    "\U0010ffff",
]


def prompts() -> list[str]:
    """Returns the prompts, always the same ones, without those of ENDED."""
    chosen = random.Random(7)
    spaced = (f"{space}red{space}fox {space}runs{space}" for space in _SPACES)
    controls = (f"a{control}red fox{control}" for control in (*_CONTROLS, *_INVISIBLE))
    decomposed = (unicodedata.normalize("NFD", text) for text in LANGUAGES)
    return [
        *ENGLISH,
        *LANGUAGES,
        *decomposed,
        *SYMBOLS,
        *SPECIAL,
        *("", " ", "\t\n", "a", ".", "\0", "a\0b"),
        *spaced,
        *controls,
        *_lengths(),
        *(_drawn(chosen, last) for last in (0x7E, 0xFF, 0x24F, 0x4FF, 0xFFFF, 0x1FFFF) for _ in range(8)),
    ]


def _lengths() -> Iterator[str]:
    """Yields prompts around and beyond 256 tokens."""
    for words in (100, 254, 255, 256, 257, 300, 1000):
        yield " ".join(["fox"] * words)
    yield " ".join(ENGLISH * 5)
    yield "狐" * 300
    yield "狐 " * 300
    yield "fox" * 400


def _drawn(chosen: random.Random, last: int) -> str:
    """Returns words of random characters up to the code point `last`, without surrogates."""
    codes = (chosen.randint(0x20, last) for _ in range(60))
    return "".join(" " if code % 7 == 0 or 0xD800 <= code < 0xE000 else chr(code) for code in codes)
