"""train: weights, by quantization-aware adversarial training, or taken from where they are shipped.

Shipped weights are taken when the training digest that they carry is the recipe's: then training again would give them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardbit.recipe import Recipe, load_recipe
from hardbit.steps import processes
from hardbit.steps.step import RunOptions, Step, Work
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.storage import sha256_file, write_atomically

if TYPE_CHECKING:
    from torch import fx

    from hardbit.train import Teacher, TrainingPlan, TrainingResult
    from hardbit.train.distributed import World

__all__ = ["STEP", "Trained", "TrainingData", "load_trained_twin", "train_network", "training_plan"]

_VALIDATION_STEPS = 10


@dataclass(frozen=True)
class Trained:
    """The files that this step leaves."""

    weights: Path
    log: Path

    @classmethod
    def at(cls, folder: Path) -> Trained:
        return cls(folder / "weights.safetensors", folder / "training.json")

    def read_log(self) -> dict[str, Any]:
        """Where the weights come from (`source`), the `training_digest` they carry, and one record an epoch."""
        log: dict[str, Any] = json.loads(self.log.read_text())
        return log


def training_plan(recipe: Recipe) -> TrainingPlan:
    """The recipe's [training] in the words of `hardbit.train`."""
    from hardbit.train import Adversary, Phase, TrainingPlan, read_initial_weights

    phases = tuple(
        Phase(
            epochs=phase.epochs,
            adversary=Adversary(
                kind=phase.adversary,
                eps_255=phase.eps_255,
                steps=phase.steps,
                step_size_255=phase.step_size_255,
                norm=recipe.threat_model.norm,
                random_start=phase.random_start,
                on_grid=phase.on_grid,
                surrogate=phase.surrogate,
            ),
            learning_rate=phase.learning_rate,
            schedule=phase.schedule,
            optimizer=phase.optimiser,
            weight_decay=phase.weight_decay,
            frozen=phase.frozen,
            ema=phase.ema,
            eps_warmup=phase.eps_warmup,
            loss=phase.loss,
            beta=phase.beta or 0.0,
            weights=phase.weights,
            activations=phase.activations,
        )
        for phase in recipe.training.phases
    )
    t = recipe.training
    return TrainingPlan(
        phases,
        seed=t.seed,
        threads=t.threads,
        batch_size=t.batch_size,
        augmentation=t.augmentation,
        inner_precision=t.inner_precision,
        outer_precision=t.outer_precision,
        inner_batch_norm=t.inner_batch_norm,
        device=t.device,
        select=t.select,
        eps_255=recipe.threat_model.eps_255,
        norm=recipe.threat_model.norm,
        initial=read_initial_weights(start, t.initial_batch_norm) if (start := recipe.initial_weights_path) else None,
        teacher=_teacher(recipe.teacher_folder) if recipe.teacher_folder else None,
        checkpoint_minutes=t.checkpoint_minutes,
    )


def _teacher(folder: Path) -> Teacher:
    """The trained network of another recipe."""
    from hardbit.train import Teacher

    recipe = load_recipe(folder)
    return Teacher(load_trained_twin(recipe, recipe.weights_path), sha256_file(recipe.weights_path))


def load_trained_twin(recipe: Recipe, weights: Path) -> fx.GraphModule:
    """The frozen network of `recipe` with the weights of a file; raises HardbitError where they do not fit."""
    from hardbit.train import load_twin

    q = recipe.quantization
    return load_twin(weights, recipe.network.architecture, recipe.network.options(), q.profile, _bits(recipe))


def _run(work: Work) -> str:
    trained = Trained.at(work.folder)
    source, reason = _source(work.recipe, work.options)
    if source is None and not work.options.may_train:
        raise HardbitError(
            f"the network of this recipe is not trained: {reason}",
            where=work.recipe.name,
            remedy="'hardbit train' trains it; convert takes other weights with --recipe all the same",
        )
    if source is not None:
        load_trained_twin(work.recipe, source)  # refuse what does not fit before anything is built on it
        shutil.copyfile(source, trained.weights)
        log = {**_metadata(source), "source": "given" if work.options.weights else "shipped"}
        note = f"weights: {log['source']} ({source.name})"
        if log.get("training_digest") != work.recipe.training_digest():
            note += ", trained by another recipe"
    else:
        if reason:
            work.progress.remark(f"training: {reason}")
        log, note = _train(work, trained)
    write_atomically(trained.log, json.dumps(log, indent=1))
    return note


def _train(work: Work, trained: Trained) -> tuple[dict[str, Any], str]:
    recipe = work.recipe
    data = TrainingData.load(recipe)
    work.progress.remark(data.remark)
    world = processes.begin(recipe, data.sha256, work.scratch)
    with work.progress.training() as shown, _tracked(work, shown) as progress:
        result = train_network(recipe, data, work.scratch, world, progress)
    world.close()
    shutil.copyfile(result.weights, trained.weights)
    log: dict[str, Any] = {
        "source": "trained",
        "training_digest": recipe.training_digest(),
        **data.provenance,
        "history": result.history,
        "epoch": result.epoch,
    }
    note = f"weights: trained for {len(result.history)} epochs on {len(data.images):,} images"
    if result.epoch < len(result.history):
        note += f", epoch {result.epoch} chosen"
    _warn_of_overfitting(work, result.history)
    if data.held_out is not None:
        log["validation"] = _validate(recipe, result.twin, *data.held_out)
        clean, attacked = (100 * log["validation"][kind] for kind in ("clean", "pgd"))
        note += f"; held-out images: {clean:.1f} % clean, {attacked:.1f} % under PGD-{_VALIDATION_STEPS}"
    return log, note


def _warn_of_overfitting(work: Work, history: Sequence[Mapping[str, Any]]) -> None:
    epochs = [str(record["epoch"]) for record in history if record.get("overfitting")]
    if epochs:
        work.progress.remark(
            f"training: catastrophic overfitting in epoch {', '.join(epochs)}: accuracy under PGD fell, accuracy under "
            "the training adversary did not"
        )


@dataclass(frozen=True)
class TrainingData:
    """The images of a recipe to train on, uint8 (n, channels, height, width) and int64 (n,), those held out of them,
    where they come from, and the SHA-256 of all."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    held_out: tuple[NDArray[np.uint8], NDArray[np.int64]] | None
    source: str
    sha256: str

    @classmethod
    def load(cls, recipe: Recipe) -> TrainingData:
        """Read them, download them first where that is needed."""
        from hardbit.data import carve_validation, load_images

        images = load_images(recipe.data_set, "train", shape=recipe.network.input_shape)
        source, digest, held_out = images.source, images.sha256(), None
        if recipe.data.validation:
            images, rest = carve_validation(images, recipe.data.validation, recipe.training.seed)
            held_out = rest.images, rest.labels
        return cls(images.images, images.labels, held_out, source, digest)

    @property
    def provenance(self) -> dict[str, Any]:
        """What weights and log say of the images."""
        return {"data": self.source, "data_sha256": self.sha256, "images": len(self.images)}

    @property
    def remark(self) -> str:
        count = len(self.images) + (len(self.held_out[0]) if self.held_out else 0)
        return f"{count:,} images: {self.source}"


def train_network(
    recipe: Recipe, data: TrainingData, run_dir: Path, world: World, progress: Any = None
) -> TrainingResult:
    """Train the network of `recipe` in `run_dir`, together with the other processes of `world`."""
    from hardbit.train import train

    return train(
        recipe.network.architecture,
        recipe.network.options(),
        recipe.quantization.profile,
        _bits(recipe),
        training_plan(recipe),
        data.images,
        data.labels,
        run_dir,
        digest=recipe.training_digest(),
        held_out=data.held_out,
        metadata={"recipe": recipe.document(), **data.provenance},
        progress=progress,
        world=world,
    )


def _tracked(work: Work, progress: Any) -> AbstractContextManager[Any]:
    """The progress that is shown, and the curves that are asked for."""
    from hardbit.train.tracking import Tracking, tracked

    digest = work.recipe.training_digest()
    curves = work.run_dir / "tensorboard" / digest[:8] if work.options.tensorboard else None
    return tracked(
        progress,
        Tracking(curves, work.options.mlflow),
        name=work.recipe.name,
        parameters={"training_digest": digest, **work.recipe.document()},
        scratch=work.scratch,
        remark=work.progress.remark,
    )


def _validate(recipe: Recipe, twin: Any, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Rates of the twin on the held-out images, clean and under PGD."""
    from hardbit.steps.twin import twin_logits
    from hardbit.train.adversary import pgd_on_bytes

    model = recipe.threat_model
    attacked = pgd_on_bytes(
        twin, images, labels, norm=model.norm, eps_255=model.eps_255, steps=_VALIDATION_STEPS, seed=recipe.training.seed
    )
    clean, adversarial = (twin_logits(twin, x).argmax(1) == labels for x in (images, attacked))
    return {"images": len(labels), "clean": float(clean.mean()), "pgd": float((clean & adversarial).mean())}


def _source(recipe: Recipe, options: RunOptions) -> tuple[Path | None, str]:
    """The file that the weights are taken from; or None, to train them, and why (nothing where it was asked for)."""
    if options.weights is not None:
        if not options.weights.is_file():
            raise HardbitError("there is no such weights file", where=str(options.weights))
        return options.weights, ""
    shipped = recipe.weights_path
    if options.retrain:
        return None, ""
    if not shipped.is_file():
        return None, f"there is no {shipped}"
    if _metadata(shipped).get("training_digest") != recipe.training_digest():
        return None, f"{shipped} was trained by another recipe"
    return shipped, ""


def _metadata(weights: Path) -> dict[str, Any]:
    """What `hardbit.train.weights` noted in the file; read here without importing PyTorch, which takes seconds."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="numpy") as file:
            return {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
    except (SafetensorError, ValueError, OSError) as error:
        raise HardbitError(f"this is not a weights file of hardbit ({error})", where=str(weights)) from error


def _bits(recipe: Recipe) -> Any:
    from hardbit.quantize import Bits

    q = recipe.quantization
    return Bits(q.weights, q.activations, q.first_layer, q.last_layer, q.layers, q.calibration)


def _decides(recipe: Recipe, options: RunOptions) -> Mapping[str, Any]:
    from hardbit.data import data_fingerprint

    source, _ = _source(recipe, options)
    if source is not None:
        return {"weights": sha256_file(source), "training": recipe.training_digest()}
    return {"training": recipe.training_digest(), "data": data_fingerprint(recipe.data_set, "train")}


STEP = Step(
    name="train",
    title="weights",
    needs=(),
    libraries=("torch", "brevitas"),
    decides=_decides,
    run=_run,
)
