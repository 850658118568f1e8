# Copyright (c) 2026, The nemo_mshubert authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""MSHuBERTModel: pre-training with Swap and the Multicluster masked prediction loss as a NeMo model.

Legend: V = 2 views (0 masked, 1 clean), B utterances, S samples, T frames, M masked frames, N rows (masked frames of
the views that enter the loss), D width, K clusters of a label set.
"""

import copy
import random
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

import torch
from lightning.pytorch import Trainer
from nemo.core.classes import ModelPT
from nemo.core.classes.common import PretrainedModelInfo
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor
from torch.utils.data import DataLoader

from nemo_mshubert.callbacks.step_guard import StepGuard
from nemo_mshubert.clustering.label_maker import LabelMaker
from nemo_mshubert.data.labels import check_labels_of
from nemo_mshubert.data.pretraining_dataset import PretrainingDataset
from nemo_mshubert.data.resumable_loader import data_options, training_loader, validation_loader, warn_of_other_data
from nemo_mshubert.data.tarred import check_shards, local_paths
from nemo_mshubert.data.unreadable import MAX_UNREADABLE
from nemo_mshubert.models.data_position import DataPosition
from nemo_mshubert.models.model_options import check_parts, check_training, layer_of_each_set
from nemo_mshubert.models.prediction_metrics import (
    Prediction,
    training_metrics,
    validation_means,
    validation_sums,
    view_cosines,
)
from nemo_mshubert.models.save_restore import WholeFile, WholeWeights
from nemo_mshubert.models.seeding import generator_of, seed_of
from nemo_mshubert.modules.frames import IGNORED_LABEL, frame_count, valid_positions
from nemo_mshubert.modules.masking import span_mask
from nemo_mshubert.modules.mshubert_encoder import Views
from nemo_mshubert.modules.state_dicts import misfits
from nemo_mshubert.modules.swap import masked_stream_view
from nemo_mshubert.modules.transformer import zero_touch
from nemo_mshubert.parallel.ranks import DataRanks, data_ranks, gradient_norm, sum_over_data_ranks


@dataclass
class Masks:
    """Masked frames of a batch and where they are in ``[B * T]``."""

    mask_BT: Tensor
    masked_M: Tensor  # indices into B * T
    visible_U: Tensor  # indices of valid frames that are not masked

    def to(self, device: torch.device) -> "Masks":
        indices = (self.mask_BT, self.masked_M, self.visible_U)
        return Masks(*(index.to(device, non_blocking=True) for index in indices))


class MSHuBERTModel(ModelPT):
    """Encoder, label heads and loss, trained on utterances whose frame labels travel in the NeMo manifest.

    The loss of an update is normalised by the masked frames of all ranks and accumulated micro-batches. All draws
    (initial weights, masks, dropped label sets, dropout, layerdrop) are functions of the seed and the step, so a
    resumed run repeats them.

    Config (``conf/pretrain``): ``label_maker`` (file of scripts/fit_kmeans.py, kept in the .nemo), ``label_sets``,
    ``label_layers`` (null: by formula), ``swap``, ``loss_views``, ``drop_label_sets``, ``masking``, ``seed``,
    ``unmasked_weight``, ``max_nonfinite_steps``, ``compile``, ``preprocessor``, ``encoder``, ``label_heads``,
    ``loss``, ``train_ds``, ``validation_ds``, ``optim``.
    """

    def __init__(self, cfg: DictConfig, trainer: Optional[Trainer] = None):
        super().__init__(cfg=cfg, trainer=trainer)
        self._save_restore_connector = WholeFile()
        cfg = self._cfg
        self.layer_of_set = layer_of_each_set(cfg, self.label_maker)
        check_training(cfg)
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers do not change
            torch.default_generator.manual_seed(seed_of(cfg.seed, "initial weights"))  # not the GPUs' generators
            self.preprocessor = self.from_config_dict(cfg.preprocessor)
            self.encoder = self.from_config_dict(cfg.encoder)
            self.label_heads = self.from_config_dict(cfg.label_heads)
            self.loss = self.from_config_dict(cfg.loss)
        check_parts(cfg, self.encoder)
        for clusters in self.layer_of_set:
            table = torch.as_tensor(self.label_maker.tables[clusters].astype("int64"))
            self.register_buffer(f"table_{clusters}", table, persistent=False)  # the label maker's file holds it
        self.is_split = False  # over ranks; set by configure_model
        self._is_setting_up = False
        self.data_position = DataPosition()
        self.step_guard = StepGuard(cfg.max_nonfinite_steps)
        self.register_buffer("masked_rows", torch.zeros((), dtype=torch.float64), persistent=False)  # of this update

    @cached_property
    def label_maker(self) -> LabelMaker:
        """Centres and tables of the labels; first needed while ``ModelPT.__init__`` sets up the data."""
        path = self._cfg.label_maker
        if path.startswith("nemo:"):
            return LabelMaker.load(self.register_artifact("label_maker", path))
        maker = LabelMaker.load(path)  # first: its error names the fault; NeMo's says only that it is no artifact
        self.register_artifact("label_maker", path)
        return maker

    # --- Ranks ---------------------------------------------------------------------------------------------------

    @property
    def data_ranks(self) -> DataRanks:
        """This rank's part of the data; ranks that hold parts of one model see the same data and draw alike."""
        return data_ranks(self._trainer)

    def configure_model(self) -> None:
        """Lightning's hook for models that are split over ranks: `parallel.tensor_parallel`, `parallel.sharded`."""
        if self.is_split or self._trainer is None:  # no trainer, as when Lightning loads a checkpoint: whole
            return
        self.is_split = hasattr(self.trainer.strategy, "split_model")
        if self.is_split:
            self.trainer.strategy.split_model(self)
        elif self.encoder.transformer_backend == "megatron":
            raise ValueError(
                "model.encoder.transformer_backend=megatron needs trainer.strategy=megatron_tp2 (or 4, 8); the config "
                "group parallel sets both."
            )

    def save_to(self, save_path: str) -> None:
        """Write a ``.nemo``. If the model is split over ranks, the file holds the whole model, and all ranks must call
        this."""
        if self.is_split:
            self._save_whole(save_path, self.trainer.strategy.lightning_module_state_dict())
        else:
            super().save_to(save_path)

    def save_checkpoint_to(self, checkpoint_path: str, save_path: str) -> None:
        """Write a ``.nemo`` with the weights of a checkpoint. These are whole, so this also works when the ranks no
        longer reach each other's parts."""
        weights = {}
        if self.trainer.is_global_zero:  # only rank 0 writes
            weights = torch.load(checkpoint_path, map_location="cpu", weights_only=False)["state_dict"]
        self._save_whole(save_path, weights)

    def _save_whole(self, save_path: str, weights: Mapping[str, Tensor]) -> None:
        connector, config = self._save_restore_connector, self._cfg
        self._save_restore_connector, self._cfg = WholeWeights(weights), copy.deepcopy(config)
        try:
            with open_dict(self._cfg):
                self._cfg.encoder.transformer_backend = "torch"  # as in every file
            super().save_to(save_path)
        finally:  # else the whole weights would stay in memory
            self._save_restore_connector, self._cfg = connector, config

    # --- Data ----------------------------------------------------------------------------------------------------

    def setup_training_data(self, train_data_config: Union[DictConfig, Dict]) -> None:
        """Keep the config; the loader is built when training starts or resumes, at the batch it had reached."""
        self._update_dataset_config(dataset_name="train", config=train_data_config)

    def setup(self, stage: Optional[str] = None) -> None:
        """Lightning's hook. NeMo's version asks twice whether there is a training loader; building one would read all
        manifests."""
        self._is_setting_up = True
        super().setup(stage)
        self._is_setting_up = False

    def train_dataloader(self) -> Optional[DataLoader]:
        if self._is_setting_up:
            return None
        config = self._cfg.train_ds
        if config.get("tarred_audio_filepaths") is not None:
            check_shards(config.manifest_filepath, config.tarred_audio_filepaths, *self.data_ranks)
        position = self.data_position
        own_batches = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        first_batch = position.first_batch(own_batches, self.data_ranks.count)
        seed = seed_of(self._cfg.seed, "crops", self.data_ranks.rank)
        dataset = self._dataset(config, seed, config.get("max_unreadable", MAX_UNREADABLE))
        self._check_labels(config.manifest_filepath, lines=1)
        return training_loader(config, dataset, *self.data_ranks, first_batch, position.places, position.shards)

    def _check_labels(self, manifests: Any, lines: Optional[int] = None) -> None:
        """Find missing labels, or labels of another maker, in the first ``lines`` of manifests (None: in all) now,
        not at the first validation. The manifests are divided among the ranks.
        """
        for manifest in local_paths(manifests)[self.data_ranks.rank :: self.data_ranks.count]:
            check_labels_of(manifest, self.label_maker.id, self.label_maker.stored_sets, lines)

    def setup_validation_data(self, val_data_config: Union[DictConfig, Dict]) -> None:
        """Build the loader of one manifest or set of manifests; NeMo calls this once for each of several."""
        self._update_dataset_config(dataset_name="validation", config=val_data_config)
        config = val_data_config if isinstance(val_data_config, DictConfig) else OmegaConf.create(val_data_config)
        if config.get("manifest_filepath") is None:
            self._validation_dl = None
            return
        self._check_labels(config.manifest_filepath)
        # without its unreadable files, the loss would be that of another set
        dataset = self._dataset(config, seed_of(self._cfg.seed, "validation crops"), max_unreadable=0)
        self._validation_dl = validation_loader(config, dataset, *self.data_ranks)

    def _dataset(self, config: DictConfig, seed: int, max_unreadable: int) -> PretrainingDataset:
        maker = self.label_maker
        return PretrainingDataset(maker.id, maker.stored_sets, config.crop, seed, max_unreadable)

    @classmethod
    def list_available_models(cls) -> List[PretrainedModelInfo]:
        return []

    # --- Forward and loss ----------------------------------------------------------------------------------------

    def forward(
        self,
        audio: Tensor,
        length: Tensor,
        mask_BT: Tensor,
        sets: Optional[List[int]] = None,
        generator: Optional[torch.Generator] = None,
        wanted_W: Optional[Tensor] = None,
    ) -> Views:
        """Samples ``[B, S]``, counts ``[B]`` and masked frames ``[B, T]`` -> outputs of both views at the blocks of
        the label sets ``sets`` (default: all), for all frames or for ``wanted_W``, indices into ``B * T``. Blocks
        above the highest of these are not run."""
        signal, length = self.preprocessor(input_signal=audio, length=length)
        layers = [self.layer_of_set[clusters] for clusters in sets or self.layer_of_set]
        return self.encoder.forward_views(signal, length, mask_BT, layers, self._cfg.swap, generator, wanted_W)

    def _draw_masks(self, length: Tensor, num_samples: int, generator: torch.Generator) -> Masks:
        frames = [frame_count(samples) for samples in length.tolist()]
        num_frames = frame_count(num_samples)
        masking = self._cfg.masking
        # fairseq makes the counts equal, in batches of one length. In a padded batch, as in validation, no row would
        # then have more masked frames than the shortest one.
        same_count = len(set(frames)) == 1
        mask_BT = span_mask(frames, masking.mask_prob, masking.mask_length, num_frames, same_count, generator)
        valid_BT = valid_positions(torch.tensor(frames), num_frames)
        visible_BT = valid_BT & ~mask_BT
        return Masks(mask_BT, mask_BT.flatten().nonzero().flatten(), visible_BT.flatten().nonzero().flatten())

    def _labels_of_set(self, labels: Dict[int, Tensor], clusters: int) -> Tensor:
        """Labels ``[B, T]`` of one set: stored, or looked up from the finest."""
        if clusters in labels:
            return labels[clusters]
        finest_BT = labels[max(labels)]
        looked_up_BT = getattr(self, f"table_{clusters}")[finest_BT.clamp(min=0)]
        return torch.where(finest_BT == IGNORED_LABEL, IGNORED_LABEL, looked_up_BT)

    def _views_in_loss(self, x_VND: Tensor, layer: int) -> Tensor:
        """The views whose masked frames are predicted, from the output of ``layer`` after its exchange."""
        if len(x_VND) == 1 or self._cfg.loss_views == "both":
            return x_VND
        view = masked_stream_view(layer) if self._cfg.loss_views == "masked_stream" else 0
        return x_VND[view : view + 1]

    def _predict(self, views: Views, labels: Dict[int, Tensor], sets: List[int], indices: Tensor) -> Prediction:
        """Logits ``[V * N, K]`` and labels ``[V * N]`` of each set at the N frames ``indices`` of ``[B * T]``."""
        rows, targets = {}, []
        for clusters in sets:
            layer = self.layer_of_set[clusters]
            x_VND = self._views_in_loss(views.at(layer, indices), layer)
            rows[clusters] = x_VND.flatten(0, 1)
            targets.append(self._labels_of_set(labels, clusters).flatten().index_select(0, indices).repeat(len(x_VND)))
        return self.label_heads(rows), targets

    def _loss(self, prediction: Prediction, views: Views) -> Tuple[Tensor, List[Tensor], Tensor]:
        """What `MulticlusterMPLLoss` returns: sum with penalty, sum of each set, and number of labelled rows."""
        logits, targets = prediction
        return self.loss(logits=list(logits.values()), labels=targets, feature_penalty=views.feature_penalty)

    # --- Training ------------------------------------------------------------------------------------------------

    def transfer_batch_to_device(self, batch: Dict[str, Any], device: torch.device, dataloader_idx: int):
        """Lightning's hook. Lengths stay on the host, which needs them to draw masks: reading them back would make it
        wait for the GPU."""
        moved = super().transfer_batch_to_device({**batch, "length": None}, device, dataloader_idx)
        return {**moved, "length": batch["length"]}

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.trainer.precision == "16-mixed" and self.is_split:
            raise ValueError(
                "trainer.precision=16-mixed with a model that is split over ranks: each would scale its loss by the "
                "overflows of its own part. Set trainer.precision=bf16-mixed."
            )
        if self.trainer.precision == "16-mixed" and self._cfg.optim.get("fused"):
            raise ValueError(
                "trainer.precision=16-mixed with model.optim.fused=true: a fused optimizer undoes the scale of the "
                "loss only after gradients were clipped. Set model.optim.fused=false, or trainer.precision=bf16-mixed."
            )
        if self._cfg.get("compile"):
            if self.encoder.transformer_backend == "megatron":
                raise ValueError("model.compile=true is for the blocks of model.encoder.transformer_backend=torch.")
            self.encoder.compile_blocks()

    def training_step(self, batch: Dict[str, Any], batch_idx: int) -> Dict[str, Any]:
        update = self.trainer.global_step
        micro_batch = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready  # with this one, over all resumes
        torch.manual_seed(seed_of(self._cfg.seed, "dropout", self.data_ranks.rank, micro_batch))
        generator = generator_of(self._cfg.seed, "masks", self.data_ranks.rank, micro_batch)
        audio, length = batch["audio"], batch["length"]
        masks = self._draw_masks(length, audio.shape[1], generator).to(audio.device)
        sets = self._kept_sets(update)
        # All ranks skip the same blocks: no rank waits for one that skips fewer, and either all ranks or none gather
        # the shards of a block.
        layerdrop = generator_of(self._cfg.seed, "layerdrop", micro_batch)
        # If only masked frames are needed, half of the last block's work is skipped. How many numbers its dropout
        # draws depends on its frames, so a run can be repeated only with the same log_every_n_steps.
        all_frames = self._cfg.unmasked_weight > 0 or self._is_logged()
        views = self.forward(audio, length, masks.mask_BT, sets, layerdrop, None if all_frames else masks.masked_M)
        masked = self._predict(views, batch["labels"], sets, masks.masked_M)
        loss_sum, set_losses, count = self._loss(masked, views)
        if self._cfg.unmasked_weight > 0:
            visible_sum, visible_count = self._unmasked_loss(views, batch["labels"], sets, masks)
            # fairseq scales the penalty by the number of all frames in the loss
            penalty = self.loss.penalty(views.feature_penalty, visible_count)
            loss_sum = loss_sum + self._cfg.unmasked_weight * visible_sum + penalty
            count = count + visible_count
        self.masked_rows += count
        self.step_guard.note(batch["utterances"], loss_sum)
        if "lines" in batch:
            self.data_position.shards.record.note(batch["lines"])

        log = {}
        if self._is_logged():  # logging may make the host wait for the GPU
            log["learning_rate"] = self._optimizer.param_groups[0]["lr"]
            with torch.no_grad():
                visible = self._predict(views, batch["labels"], sets, masks.visible_U)
                log.update(training_metrics(masked, visible, set_losses))
            log["feature_penalty"] = views.feature_penalty.detach()
        # over the kept sets and with the feature penalty; val_loss is over all sets and without it
        self.log("train_loss", loss_sum.detach() / count.clamp(min=1))
        for head in self.label_heads.absent(sets):
            loss_sum = loss_sum + zero_touch(head)
        # Lightning divides by the number of accumulated micro-batches, and DDP by the number of ranks. Both are undone
        # here, so that gradients are sums over all of these; `configure_gradient_clipping` divides the sums by the
        # number of rows, which is also counted over all of them.
        return {"loss": loss_sum * self.trainer.accumulate_grad_batches * self.data_ranks.count, "log": log}

    def _is_logged(self) -> bool:
        """Whether this micro-batch ends an update after which Lightning logs."""
        if self.trainer.fit_loop._should_accumulate():
            return False
        return (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0

    def _unmasked_loss(self, views: Views, labels: Dict[int, Tensor], sets: List[int], masks: Masks):
        """Sum and count of the cross-entropy at the visible frames (HuBERT's L_u; fairseq: pred_nomask_weight)."""
        _, set_losses, count = self._loss(self._predict(views, labels, sets, masks.visible_U), views)
        return torch.stack(set_losses).sum(), count

    def _kept_sets(self, update: int) -> List[int]:
        """Section 2.2.2: every update drops sets at random, the same sets on all ranks and in all its
        micro-batches."""
        sets = list(self.layer_of_set)
        draw = random.Random(seed_of(self._cfg.seed, "kept sets", update))
        kept = draw.sample(sets, len(sets) - self._cfg.drop_label_sets)
        return [clusters for clusters in sets if clusters in kept]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Compute the update's count of masked rows and gradient norm; drop its gradients if they are not finite."""
        sum_over_data_ranks(self.masked_rows, self.data_ranks)
        norm = gradient_norm(parameter for group in optimizer.param_groups for parameter in group["params"])
        # Here the host waits for the GPU; with several ranks, it waits once more in `callbacks.preemption`.
        self._rows, norm_of_sum = torch.stack([self.masked_rows.clamp(min=1), norm.double()]).tolist()
        self.masked_rows.zero_()
        self._grad_norm = norm_of_sum / self._rows
        if not self.step_guard.accept(self._grad_norm, self.trainer.global_step):
            optimizer.zero_grad(set_to_none=True)  # without gradients the optimizer leaves weights and moments alone
        if self._is_logged():
            self.log("grad_norm", self._grad_norm)
            self.log("nonfinite_steps", float(self.step_guard.num_skipped))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: Optional[float] = None,
        gradient_clip_algorithm: Optional[str] = None,
    ) -> None:
        """Lightning's hook: turn gradients of the sum into gradients of the mean over the masked rows and clip them by
        their norm over all ranks (as `torch.nn.utils.clip_grad_norm_`), in one pass."""
        if gradient_clip_algorithm not in (None, "norm"):
            raise ValueError(f"trainer.gradient_clip_algorithm: expected norm, found {gradient_clip_algorithm}.")
        factor = 1 / self._rows
        if gradient_clip_val:
            factor *= min(1.0, gradient_clip_val / (self._grad_norm + 1e-6))
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if gradients := [p.grad for p in parameters if p.grad is not None]:  # none in a skipped update
            torch._foreach_mul_(gradients, factor)

    # --- Checkpoints ---------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: Dict[str, Any]) -> None:
        """Store the place in the data, the data options, the task of the run, and its count of skipped updates."""
        own_batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]
        checkpoint["batches_of_all_ranks"] = self.data_position.batches_of_all(own_batches, self.data_ranks.count)
        checkpoint["place"] = asdict(self.data_position.place(own_batches, self.data_ranks.count))
        if self._cfg.train_ds.get("tarred_audio_filepaths") is not None:
            checkpoint["shards"] = self.data_position.shards.state()
        checkpoint["data_options"] = self._data_options
        checkpoint["task"] = self._task()
        checkpoint["nonfinite_steps"] = self.step_guard.num_skipped

    def on_load_checkpoint(self, checkpoint: Dict[str, Any]) -> None:
        """Restore the place in the data, even if the number of ranks has changed, and the count of skipped updates.

        Raises:
            ValueError: the checkpoint has other labels, its label sets at other blocks, or another architecture.
        """
        self._check_checkpoint(checkpoint)
        if self._trainer and self.trainer.global_step == 0:  # not for the best checkpoint, loaded after training
            warn_of_other_data(checkpoint["data_options"], self._data_options)
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        self.data_position.resume(
            checkpoint["batches_of_all_ranks"],
            batches["total"]["completed"],
            checkpoint["place"],
            self.data_ranks.count,
        )
        if self._trainer:  # an update begins with the next batch, even if updates have more batches than before
            count = batches["current"]["completed"]
            count -= count % self.trainer.accumulate_grad_batches
            batches["current"].update(dict.fromkeys(batches["current"], count))
        if "shards" in checkpoint:  # tarred data
            self.data_position.shards.load(checkpoint["shards"])
        self.step_guard.num_skipped = checkpoint.get("nonfinite_steps", 0)  # older checkpoints do not say it

    @cached_property
    def _data_options(self) -> Dict[str, Any]:
        return data_options(self._cfg.train_ds, self.data_ranks.count)

    def _task(self) -> Dict[str, Any]:
        """What the weights of a checkpoint have learned to predict, and from what."""
        task = {name: self._cfg[name] for name in ("swap", "loss_views")}
        return {"label maker": self.label_maker.id, "layers of label sets": dict(self.layer_of_set), **task}

    def _check_checkpoint(self, checkpoint: Dict[str, Any]) -> None:
        path = self.trainer.ckpt_path if self._trainer else "the checkpoint"
        remedy = "Resume with the config it was made with, or start another run with another name=."
        for name, value in self._task().items():
            found = checkpoint.get("task", {}).get(name)  # a checkpoint of fine-tuning has none
            if found != value:
                raise ValueError(f"{path}: {name} {found}, but the config says {value}. {remedy}")
        if self.is_split or not checkpoint.get("state_dict"):
            return  # the parts have this rank's shapes; a sharded checkpoint is read in place
        if found := misfits(self.state_dict(), checkpoint["state_dict"]):
            raise ValueError(f"{path}: another architecture: {'; '.join(found)}. {remedy}")

    # --- Validation ----------------------------------------------------------------------------------------------

    def validation_step(self, batch: Dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> Dict[str, Tensor]:
        """Sums per label set over the masked and unmasked frames of the batch; the masks are the same in every
        validation."""
        generator = generator_of(self._cfg.seed, "validation masks", self.data_ranks.rank, batch_idx)
        audio, length = batch["audio"], batch["length"]
        masks = self._draw_masks(length, audio.shape[1], generator).to(audio.device)
        views = self.forward(audio, length, masks.mask_BT)
        sets = list(self.layer_of_set)
        masked = self._predict(views, batch["labels"], sets, masks.masked_M)
        _, set_losses, count = self._loss(masked, views)
        visible = self._predict(views, batch["labels"], sets, masks.visible_U)
        sums = validation_sums(masked, visible, set_losses, count)
        sums.update(view_cosines(views, masks.masked_M, masks.visible_U))
        outputs = self.validation_step_outputs
        if isinstance(self._validation_dl, list) and len(self._validation_dl) > 1:
            outputs = outputs[dataloader_idx]
        outputs.append(sums)
        return sums

    def multi_validation_epoch_end(self, outputs: List[Dict[str, Tensor]], dataloader_idx: int = 0) -> Dict[str, Any]:
        """Means over the masked frames of all batches and ranks; ``val_loss`` is the sum of the losses of all sets."""
        sums = {name: sum(output[name].double() for output in outputs) for name in outputs[0]}
        for value in sums.values():
            sum_over_data_ranks(value, self.data_ranks)
        log = validation_means(sums, list(self.layer_of_set))
        return {"val_loss": log["val_loss"], "log": log}
