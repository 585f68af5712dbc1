"""Text in any language, from its vocabulary to the model that writes it and all that shows it."""

import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bs4 import BeautifulSoup

from ddlm_core.animation import Animation, characters, make_frames
from ddlm_core.apps import generate, page
from ddlm_core.apps.warm_start import warm_start
from ddlm_core.block_pipeline import WRITING, BlockPipeline
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.pipeline import DiffusionPipeline
from ddlm_core.support.drawing import PAD_MARK, cells
from ddlm_core.support.terminal import _rows
from ddlm_core.support.text import normalized
from ddlm_core.tokenizer import (
    SPECIAL_TOKENS,
    VOCAB,
    CharacterLevelTokenizer,
    vocabulary_of,
)

TEXTS = {  # all of our own
    "German": "Der Fuchs läuft über die Brücke. „Groß ist der Mond“, sagt er, „und süß der Käse.“",
    "Russian": "Лиса идёт через мост. «Какая большая луна!» — говорит она. Ёжик молчит.",
    "Greek": "Η αλεπού περνάει τη γέφυρα. «Τι μεγάλο φεγγάρι!» λέει. Ο σκαντζόχοιρος σωπαίνει.",
    "Hindi": "लोमड़ी पुल पार करती है। “चाँद कितना बड़ा है!” वह कहती है। साही चुप रहता है।",
    "Japanese": "きつねが橋を渡ります。「月が大きいな」と言いました。ハリネズミは黙っています。",
    "Python": 'def fox(n: int) -> str:\n\t"""How far?"""\n\treturn f"{n:>3} m\\n" if n % 2 else "_"\n',
    "chat": "Ida\u00a0: ça va ? 😀\nTom\u202f: oui ! ☕👍🏽\nIda\u00a0: l·l ¶ — à demain…",
}
Made = tuple[str, DiffusionPipeline, Path]


@pytest.fixture(scope="module", params=TEXTS)
def made(request, tiny_network, tmp_path_factory) -> Made:
    """A text, a model of its language as it comes back from its folder, and the folder."""
    text = normalized(TEXTS[request.param])
    network = tiny_network(vocab=vocabulary_of(Counter(text)), block_size=90)
    folder = tmp_path_factory.mktemp(request.param) / "model"
    DiffusionPipeline(network, "cpu").save_pretrained(folder)
    return text, DiffusionPipeline.from_pretrained(folder, device="cpu"), folder


def template_of(text: str) -> str:
    """The text with six blanks in it, and its own underscores kept."""
    return text[:5].replace("_", r"\_") + "_{6}" + text[11:].replace("_", r"\_")


def test_the_model_reads_and_fills_in(made: Made):
    text, pipeline, _ = made
    assert set(pipeline.tokenizer.vocab[2:]) == set(text)
    assert pipeline.tokenizer.decode(pipeline.tokenizer.encode(text)) == text
    with warnings.catch_warnings(action="error"):
        assert pipeline.bits_per_character(text).mean > 0
    for template in (template_of(text), template_of(text).replace("\n", "\r\n")):
        (written,) = pipeline.generate(template=template, seed=0, num_steps=2)
        assert written.startswith(text[:5]) and written.endswith(text[11:])
        assert set(written) <= {*text, "\ufffd", *"\n<|endoftext|>"}


def test_the_command_writes_files(made: Made, tmp_path, capsys):
    text, pipeline, folder = made
    common = ["--model", str(folder), "--seed", "1", "--num-steps", "2", "--device", "cpu"]
    for name in ("a.txt", "a.jsonl", "a.html"):
        generate.main([*common, "--output", str(tmp_path / name)])
    (written,) = pipeline.generate(seed=1, num_steps=2)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == written + "\n"
    assert json.loads((tmp_path / "a.jsonl").read_text(encoding="utf-8"))["text"] == written
    soup = BeautifulSoup((tmp_path / "a.html").read_text(encoding="utf-8"), "html.parser")
    assert soup.select_one(".ddlm-player pre").text == written
    generate.main(common)
    assert capsys.readouterr().out == written + "\n"


def test_the_web_page_writes(made: Made):
    text, pipeline, _ = made
    pipeline = BlockPipeline(pipeline.model, "cpu")
    models = page.Models(pipeline, "own")
    assert page.count(template_of(text), pipeline.config).startswith(f"{len(text)} of 90")
    asked = {"model": "own", "template": template_of(text), "go_on": False, "seq_len": 90}
    asked |= {"num_samples": 1, "num_steps": 2, "schedule": "linear", "temperature": 1.0}
    asked |= {"churn": 1.0, "stop_at_end": False, "seed": "0"} | WRITING
    with warnings.catch_warnings():  # the GIF says what its font lacks
        warnings.filterwarnings("ignore", "the font DejaVu Sans Mono lacks")
        *_, (html, finished, *files) = page.write(models, *(asked[n] for n in page.CONTROLS))
    assert finished.startswith(text[:5]) and finished.endswith(text[11:]) and len(files) == 3
    shown = BeautifulSoup(html, "html.parser").pre.text.replace("↵", "\n").replace("⇥", "\t")
    assert shown.startswith(text[:5]) and text[11:] in shown


def test_other_weights_warm_it_up(made: Made):
    _, pipeline, _ = made
    network = DiscreteDiffusionTransformer(
        DiscreteDiffusionConfig(block_size=90, vocab=pipeline.config.vocab)
    )
    said = warm_start(network, "tinystories-cpu")
    shared, fresh = len({*pipeline.config.vocab} & {*VOCAB}), {*pipeline.config.vocab} - {*VOCAB}
    assert f"rows of the {shared} tokens" in said and "\n" not in said
    assert (f"{len(fresh)} tokens start fresh" in said) == bool(fresh)


def test_it_says_what_it_cannot_read(made: Made):
    text, pipeline, _ = made
    with pytest.warns(UserWarning, match="does not know 'Ж', '☃': they count as <UNK>"):
        pipeline.bits_per_character(text + "☃Ж")
    with pytest.raises(ValueError, match="'☃' of the template: leave them out, or train with"):
        pipeline.generate(template="☃_")


def test_more_characters_than_fit():
    """Japanese has thousands: the most frequent are read, the others are told."""
    counts = Counter({chr(0x4E00 + i): 2000 - i for i in range(1000)})
    vocab = vocabulary_of(counts)
    assert len(vocab) == 256 and vocab[2:] == tuple(chr(0x4E00 + i) for i in range(254))
    tokenizer = CharacterLevelTokenizer(vocab)
    assert tokenizer.unknown_characters("一丁\u5000") == ["\u5000"]
    assert tokenizer.decode(tokenizer.encode("一\u5000")) == "一\ufffd"


@pytest.mark.parametrize("width", [2, 7, 20])
@pytest.mark.parametrize("language", TEXTS)
def test_rows_of_a_terminal_are_not_too_wide(language, width):
    text = normalized(TEXTS[language])
    tokenizer = CharacterLevelTokenizer(vocabulary_of(Counter(text)))
    marks = characters(tokenizer.encode(text).tolist(), tokenizer)
    assert marks == text  # nothing of these texts is dangerous
    rows = _rows(marks, range(0, len(marks), 3), width)
    plain = [re.sub(r"\x1b\[[\d;]*m", "", row) for row in rows]
    assert max(sum(map(cells, row)) for row in plain) in (width, width - 1)
    joined = "".join(plain).replace("↵", "\n").replace("⇥", "\t").replace("◌", "")
    assert joined == text


@pytest.fixture
def tab(browser) -> Iterator[Any]:
    """A tab without motion, in which nothing fails."""
    context = browser.new_context(reduced_motion="reduce", viewport={"width": 700, "height": 500})
    tab, wrong = context.new_page(), []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    yield tab
    context.close()
    assert not wrong


@pytest.mark.parametrize("language", TEXTS)
def test_the_player_shows_it(language, tab, tmp_path):
    text = normalized(TEXTS[language])
    tokenizer = CharacterLevelTokenizer(vocabulary_of(Counter(text)))
    end = torch.cat([tokenizer.pad(text, len(text) + 1), tokenizer.pad(text[:9], 12)])
    start = torch.randint(0, len(tokenizer), end.shape, generator=torch.manual_seed(0))
    animation = Animation(make_frames([start, end], [20.0, 0.0]), tokenizer)
    tab.goto(animation.save(tmp_path / "run.html").as_uri())
    tab.locator("button").wait_for()
    shown = f"{text}\n<|endoftext|>\n{text[:9]}"
    assert tab.locator("pre").text_content() == str(animation) == shown  # to read, and to copy
    assert tab.locator(".ddlm-stop").count() == 1 and tab.locator(".ddlm-end").count() == 3
    size = tab.locator(".ddlm-stop").bounding_box()
    letter = tab.locator("pre span span").first.bounding_box()
    assert (size["height"], size["width"]) == (letter["height"], pytest.approx(8, abs=4))
    tab.locator("input").press("Home")
    assert tab.locator("pre").text_content() == str(Animation(animation.frames[:1], tokenizer))
    joined = tab.locator(".ddlm-joined").count()
    assert (joined > 0) == (language == "Hindi") and SPECIAL_TOKENS[1] not in shown
    assert PAD_MARK not in tab.locator("pre").text_content()
