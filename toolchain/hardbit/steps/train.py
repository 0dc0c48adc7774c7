"""train: weights, by quantization-aware adversarial training, or taken from where they are shipped.

Shipped weights are taken when the training digest that they carry is the recipe's: then training again would give them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hardbit.recipe import Recipe, load_recipe
from hardbit.steps.step import RunOptions, Step, Work
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.storage import sha256_file, write_atomically

if TYPE_CHECKING:
    from torch import fx

    from hardbit.train import Teacher, TrainingPlan

__all__ = ["STEP", "Trained", "load_trained_twin", "training_plan"]

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
        initial=read_initial_weights(recipe.initial_weights_path) if recipe.initial_weights_path else None,
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
    from hardbit.data import carve_validation, load_images
    from hardbit.train import train

    recipe = work.recipe
    images = load_images(recipe.data_set, "train", shape=recipe.network.input_shape)
    work.progress.remark(f"{len(images):,} images: {images.source}")
    data = {"data": images.source, "data_sha256": images.sha256()}
    held_out = None
    if recipe.data.validation:
        images, held_out = carve_validation(images, recipe.data.validation, recipe.training.seed)
    with work.progress.training() as progress:
        result = train(
            recipe.network.architecture,
            recipe.network.options(),
            recipe.quantization.profile,
            _bits(recipe),
            training_plan(recipe),
            images.images,
            images.labels,
            work.scratch,
            digest=recipe.training_digest(),
            held_out=(held_out.images, held_out.labels) if held_out is not None else None,
            metadata={"recipe": recipe.document(), **data, "images": len(images)},
            progress=progress,
        )
    shutil.copyfile(result.weights, trained.weights)
    log: dict[str, Any] = {
        "source": "trained",
        "training_digest": recipe.training_digest(),
        **data,
        "images": len(images),
        "history": result.history,
    }
    note = f"weights: trained for {len(result.history)} epochs on {len(images):,} images"
    if held_out is not None:
        log["validation"] = _validate(recipe, result.twin, held_out.images, held_out.labels)
        clean, attacked = (100 * log["validation"][kind] for kind in ("clean", "pgd"))
        note += f"; held-out images: {clean:.1f} % clean, {attacked:.1f} % under PGD-{_VALIDATION_STEPS}"
    return log, note


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
    return Bits(q.weights, q.activations, q.first_layer, q.last_layer)


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
