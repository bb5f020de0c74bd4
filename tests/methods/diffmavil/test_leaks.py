"""What is hidden stays hidden: by perturbing inputs and by asking autograd."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from avpretrain.data.batch import AVBatch
from avpretrain.methods.diffmavil.curriculum import MaskRatios
from avpretrain.methods.diffmavil.model import DiffMAViL, Side
from avpretrain.nn.masking import gather_patches
from tests.support.tiny_models import random_batch, tiny

SIDES: tuple[Side, ...] = ("audio", "video")
FIELD = {"audio": "audio_BFM", "video": "video_BTCHW"}


def with_input(batch: AVBatch, side: Side, value: Tensor) -> AVBatch:
    return dataclasses.replace(batch, **{FIELD[side]: value})


def model_and_batch(**options: object) -> tuple[DiffMAViL, AVBatch]:
    torch.manual_seed(0)
    cfg = tiny(**options)  # type: ignore[arg-type]
    model = DiffMAViL(cfg).eval()
    for name, parameter in model.named_parameters():
        if ".modulation." in name:  # adaLN starts closed, and a closed gate would hide a leak
            torch.nn.init.normal_(parameter, std=0.1)
    return model, random_batch(cfg)


def gradient(model: DiffMAViL, batch: AVBatch, side: Side, output: Callable[[AVBatch], Tensor]) -> Tensor:
    """|d output / d patch| summed over values: [B, L]."""
    leaf = getattr(batch, FIELD[side]).clone().requires_grad_()
    output(with_input(batch, side, leaf)).backward()
    patches = model.patchify(with_input(batch, side, leaf.grad))[side]
    return patches.abs().sum(dim=-1)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("fusion", ["joint", "bottleneck"])
def test_encoders_and_fusion_never_see_hidden_patches(side: Side, fusion: str) -> None:
    model, batch = model_and_batch()

    def context(b: AVBatch) -> Tensor:
        return sum((v.context_BCD * torch.linspace(-1, 1, v.context_BCD.shape[-1])).sum() for v in views(b).values())

    def views(b: AVBatch) -> dict:
        return model.encode_masked(b, 0.75, 0.75)

    grad_BL = gradient(model, batch, side, context)
    hidden_BL = views(batch)[side].mask.mask_BL.bool()
    assert not grad_BL[hidden_BL].any()
    assert (grad_BL[~hidden_BL] > 0).all()


@pytest.mark.parametrize("side", SIDES)
def test_contrastive_losses_never_see_hidden_patches(side: Side) -> None:
    model, batch = model_and_batch(views=2)
    seen_BL = torch.zeros_like(model.tower(side).masks(batch.seed_B, 0.75, 2)[0].mask_BL).bool()
    for mask in model.tower(side).masks(batch.seed_B, 0.75, 2):
        seen_BL |= ~mask.mask_BL.bool()

    def contrast(b: AVBatch) -> Tensor:
        losses = model(b, MaskRatios(0.75, 0.75))
        return losses["inter"] + losses["intra_audio"] + losses["intra_video"]

    grad_BL = gradient(model, batch, side, contrast)
    assert not grad_BL[~seen_BL].any()
    assert (grad_BL[seen_BL] > 0).all()


@pytest.mark.parametrize("kind", ["joint", "cross_self", "cross"])
@pytest.mark.parametrize("source", ["mask_token", "diffused"])
@pytest.mark.parametrize("time", ["none", "added", "adaln"])
def test_one_clip_never_changes_anothers_predictions(kind: str, source: str, time: str) -> None:
    model, batch = model_and_batch(kind=kind, source=source, diffusion={"time_conditioning": time})

    def predictions(b: AVBatch) -> list[Tensor]:
        views = model.encode_masked(b, 0.75, 0.75)
        return [model.tower(side).denoise(views[side], b.seed_B, 0).prediction_BNQ for side in SIDES]

    changed = dataclasses.replace(
        batch,
        audio_BFM=torch.cat([batch.audio_BFM[:1] + 1, batch.audio_BFM[1:]]),
        video_BTCHW=torch.cat([batch.video_BTCHW[:1] + 1, batch.video_BTCHW[1:]]),
    )
    for before, after in zip(predictions(batch), predictions(changed), strict=True):
        torch.testing.assert_close(before[1:], after[1:], atol=1e-6, rtol=0)
        assert not torch.allclose(before[0], after[0])


@pytest.mark.parametrize("kind", ["joint", "cross_self", "cross"])
@pytest.mark.parametrize("side", SIDES)
def test_mask_token_decoders_see_nothing_of_hidden_patches(kind: str, side: Side) -> None:
    model, batch = model_and_batch(kind=kind, source="mask_token")

    def prediction(b: AVBatch) -> Tensor:
        return model.tower(side).denoise(model.encode_masked(b, 0.75, 0.75)[side], b.seed_B, 0).prediction_BNQ.sum()

    grad_BL = gradient(model, batch, side, prediction)
    hidden_BL = model.tower(side).masks(batch.seed_B, 0.75, 2)[0].mask_BL.bool()
    assert not grad_BL[hidden_BL].any()
    assert (grad_BL[~hidden_BL] > 0).all()


def last_step_predictions(model: DiffMAViL, batch: AVBatch, side: Side) -> Tensor:
    """What the decoder says of patches noised, as in training, to the last timestep."""
    view = model.encode_masked(batch, 0.75, 0.75)[side]
    clean = gather_patches(view.patches_BLP, view.mask.ids_hidden_BN)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    last_B = torch.full_like(batch.seed_B, model.cfg.diffusion.num_train_timesteps - 1)
    x_t = model.tower(side).process.add_noise(clean, noise, last_B)
    return model.tower(side).decoder(view.context_BCD, view.mask.ids_keep_BK, view.mask.ids_hidden_BN, x_t, last_B)


@pytest.mark.parametrize("kind", ["joint", "cross_self", "cross"])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("strict", [True, False])
def test_at_the_last_timestep_the_decoder_sees_only_noise(kind: str, side: Side, strict: bool) -> None:
    """Exactly so with `zero_terminal_snr`; else up to the 0.6% of amplitude that a linear schedule leaves."""
    model, batch = model_and_batch(kind=kind, diffusion={"zero_terminal_snr": strict})
    hidden_BL = model.tower(side).masks(batch.seed_B, 0.75, 2)[0].mask_BL.bool()
    grad_BL = gradient(model, batch, side, lambda b: last_step_predictions(model, b, side).sum())
    assert (grad_BL[~hidden_BL] > 0).all()
    share = grad_BL[hidden_BL].mean() / grad_BL[~hidden_BL].mean()
    assert share == 0 if strict else 0 < share < 0.1


@pytest.mark.parametrize("source", ["mask_token", "diffused"])
def test_reconstruction_does_not_depend_on_hidden_pixels(source: str) -> None:
    """Without `norm_pix_loss`, whose statistics are put back from the truth, nothing of them enters a picture."""
    model, batch = model_and_batch(source=source, loss={"norm_pix_loss": False})
    picture = model.reconstruct(batch, 0.75, 0.75)
    noise = torch.randn(batch.audio_BFM.shape, generator=torch.Generator().manual_seed(1))
    other = dataclasses.replace(batch, audio_BFM=batch.audio_BFM + noise * picture.audio_mask_BFM)
    assert torch.equal(model.reconstruct(other, 0.75, 0.75).audio_BFM, picture.audio_BFM)
    shown = picture.audio_mask_BFM == 0
    assert torch.equal(picture.audio_BFM[shown], batch.audio_BFM[shown])


def test_windows_do_not_wrap_around_the_edges() -> None:
    """In a windowed decoder of two layers the first row of patches hears of its neighbours, but not of the last row."""
    model, _ = model_and_batch(kind="joint", source="mask_token", decoder={"window": (2, 2)})
    decoder = model.tower("audio").decoder
    keep_BK = torch.arange(0, 16, 2).expand(4, -1)
    hidden_BN = torch.arange(1, 16, 2).expand(4, -1)
    context = torch.randn(4, 9, 48, requires_grad=True)
    out_BNQ = decoder(context, keep_BK, hidden_BN)
    out_BNQ[:, 0].sum().backward()  # place 1: first row of the 4 x 4 grid
    reached = {int(keep_BK[0, i]) for i in range(8) if context.grad[:, 1 + i].any()}
    assert 0 in reached
    assert max(reached) < 12


@pytest.mark.parametrize("kind", ["cross", "cross_self"])
def test_decoder_blocks_attend_to_the_encoder_blocks_they_are_told(kind: str) -> None:
    """What a decoder block attends to moves when the tokens of its encoder block do, and only then."""
    model, batch = model_and_batch(kind=kind, decoder={"levels": (0, 1)})
    view = model.encode_masked(batch, 0.75, 0.75)["audio"]
    assert set(view.levels) == {1}
    visible = gather_patches(view.patches_BLP, view.mask.ids_keep_BK)
    found: dict[int, Tensor] = {}
    tokens = model.audio_encoder(visible, view.mask.ids_keep_BK, levels=found)
    torch.testing.assert_close(found[1], view.levels[1])
    torch.testing.assert_close(model.audio_encoder.norm(found[2]), tokens)
    seen: list[Tensor] = []
    for block in model.tower("audio").decoder.blocks:
        block.cross_attn.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["context_BCD"]), with_kwargs=True
        )
    changed = dataclasses.replace(view, levels={1: view.levels[1] + torch.randn_like(view.levels[1])})
    for given in (view, changed):
        model.tower("audio").denoise(given, batch.seed_B, 0)
    assert torch.equal(seen[0], seen[2])
    assert not torch.allclose(seen[1], seen[3])
    model(batch, MaskRatios(0.75, 0.75))["loss"].backward()
    assert all(p.grad is not None for p in model.tower("audio").decoder.parameters())


@pytest.mark.parametrize(
    ("kind", "levels", "says"),
    [
        ("joint", (0, 1), "levels need kind"),
        ("cross", (0,), "one for each of 2 blocks"),
        ("cross", (1, 2), "must hold 0"),
        ("cross", (0, 3), "levels must lie in 0 to 2"),
    ],
)
def test_impossible_levels_are_refused(kind: str, levels: tuple[int, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tiny(kind, decoder={"levels": levels})
