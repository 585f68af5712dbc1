"""The README's Python and the documented interface run as they are written."""

import re
import runpy
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)

# The interface that this project keeps, as one program.
INTERFACE = """
import torch
from ddlm_core import (
    CharacterLevelTokenizer, DiffusionPipeline, DiscreteDiffusionConfig,
    DiscreteDiffusionTransformer, GeometricNoise, Trainer, TrainingConfig, compute_loss,
    create_timestep_schedule, perturb_batch, sample_diffusion, score_entropy_loss,
    setup_dataloaders, staggered_score, stories, transition,
)

tokenizer = CharacterLevelTokenizer()
x_0 = torch.stack([tokenizer.pad(text, 160) for text in stories.sample(4, 0)])
noise = GeometricNoise(1e-4, 20.0)
sigma_bar, sigma = noise(torch.tensor([0.1, 0.4, 0.7, 0.9]))
x_t = perturb_batch(x_0, sigma_bar, 106, mask=None, generator=None)
model = DiscreteDiffusionTransformer(
    DiscreteDiffusionConfig(block_size=160, n_layer=1, n_head=1, n_embd=8, cond_dim=4)
)
log_score = model(x_t, sigma_bar)
loss = score_entropy_loss(log_score, sigma_bar, x_t, x_0)
compute_loss(model, x_0, noise).mean().backward()
assert staggered_score(log_score.exp(), sigma_bar).shape == transition(x_t, sigma_bar, 106).shape
times = create_timestep_schedule(4)
tokens = sample_diffusion(model, noise, 2, 160, num_steps=4)
assert stories.entropy() > 0 and isinstance(stories.log_prob(tokenizer.decode(x_0[0])), float)

pipeline = DiffusionPipeline.from_pretrained()
texts = pipeline.generate(
    num_samples=2, seq_len=160, num_steps=8, schedule="cosine", template="Lily ",
    temperature=1.0, seed=0, return_tokens=False,
)
for step in pipeline.generate_streaming(num_steps=2):
    pass
text = pipeline.generate_with_visualization(num_steps=8)
assert str(text) and f"{text}" == str(text)
text.save("text.html")
text.save("text.gif")
estimate = pipeline.bits_per_character(texts[0])
assert all(type(value) is float for value in (estimate.mean, estimate.low, estimate.high))

train, val, test, _ = setup_dataloaders(
    "pocket-stories", train_samples=64, val_samples=8, context_length=160, batch_size=16
)
config = TrainingConfig(
    dataset_name="pocket-stories", context_length=160, batch_size=16, max_steps=2, progress=False
)
trainer = Trainer(model=model, train_loader=train, val_loader=val, config=config)
trainer.train()
DiffusionPipeline.from_pretrained("checkpoints/best_model_hf").save_pretrained("copy")
"""


@pytest.mark.parametrize("number", range(len(BLOCKS)))
@pytest.mark.slow
def test_the_python_of_the_readme_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "block.py").write_text(BLOCKS[number], encoding="utf-8")
    torch.manual_seed(0)
    runpy.run_path(str(tmp_path / "block.py"))


def test_the_readme_has_python():
    assert len(BLOCKS) == 3
    assert "text = pipeline.generate_with_visualization(num_steps=256)\n" in re.sub(
        r"  # .*", "", BLOCKS[0]
    )


def test_the_documented_interface_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "interface.py").write_text(INTERFACE, encoding="utf-8")
    runpy.run_path(str(tmp_path / "interface.py"))
    assert (tmp_path / "checkpoints/final_model_hf").is_dir()
    assert (tmp_path / "text.gif").read_bytes().startswith(b"GIF8")
