# Generated from notebooks/ by tools/export.py: edit that, then run `make export`.
"""A character-level discrete diffusion language model, exported from the chapters of the book.

Every name below resolves on first use, so that `import ddlm_core` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddlm_core.animation import *
    from ddlm_core.data import *
    from ddlm_core.forward import *
    from ddlm_core.loss import *
    from ddlm_core.model import *
    from ddlm_core.noise import *
    from ddlm_core.pipeline import *
    from ddlm_core.sampler import *
    from ddlm_core.tokenizer import *
    from ddlm_core.training import *

__version__ = "0.1.0"

_MODULES = (
    "tokenizer stories noise forward animation loss model sampler data training pipeline".split()
)
_NAMES = {
    "tokenizer": "UNK_ID PAD_ID SPECIAL_TOKENS VOCAB look_up CharacterLevelTokenizer",
    "noise": "rate_matrix as_float_tensor corrupted_fraction transition_matrix GeometricNoise",
    "forward": "transition sample_prior perturb_batch",
    "animation": "Frame iter_frames make_frames PAD_MARK ARROWS characters final_text encode_frames render_player Animation",
    "loss": "kappa log_ratio score_entropy_loss denoiser_log_score log_posterior low_discrepancy_times free_mean compute_loss prior_kl reconstruction_nats",
    "model": "DiscreteDiffusionConfig check_config noise_features NoiseEmbedding Modulation modulated_norm rotary_angles rotate Attention FeedForward Block check_input DiscreteDiffusionTransformer",
    "sampler": "euler_probs staggered_score analytic_probs SCHEDULES create_timestep_schedule noise_levels sample_generators reverse_probs DenoisingStep denoising_steps sample_diffusion",
    "data": "Piece read_file POCKET read_stories hub_stories encode_stories split_stories TokenWindows WindowSampler training_loader evaluation_loader setup_dataloaders",
    "training": "TrainingConfig proposal_times draw_given training_loss build_optimizers learning_rate_factor update_average Bound window_nats validation_bound TrainingState TrainingDiverged train_step batches_from write_whole save_weights save_checkpoint load_checkpoint Trainer checkpoint_blocks",
    "pipeline": "load_model bundled_models encode_template TextStep DiffusionPipeline",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = [*_HOME, "stories"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = globals()[name] = getattr(import_module(f"ddlm_core.{_HOME[name]}"), name)
        return value
    if name in _MODULES:
        return import_module(f"ddlm_core.{name}")
    raise AttributeError(f"module 'ddlm_core' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
