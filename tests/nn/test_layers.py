"""Blocks and encoders against timm and plain formulas."""

import math
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn

from avpretrain.config.model import DecoderConfig, FusionConfig
from avpretrain.config.scaling import uniform
from avpretrain.nn.decoder import DecoderBlock
from avpretrain.nn.encoder import Encoder, Fusion
from avpretrain.nn.layers import Attention, Block, CrossAttention, TimestepEmbedding
from avpretrain.nn.patches import AudioPatches, patchify_audio


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_block_equals_timms() -> None:
    theirs = timm.models.vision_transformer.Block(48, 4, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))
    ours = Block(48, 4, 4 * 48)
    ours.load_state_dict(theirs.state_dict())
    x_BLD = torch.randn(3, 17, 48)
    torch.testing.assert_close(ours(x_BLD), theirs(x_BLD), atol=1e-5, rtol=0)


def test_encoder_equals_timms_vit() -> None:
    theirs = timm.models.VisionTransformer(
        img_size=(64, 32), patch_size=(16, 8), in_chans=1, embed_dim=48, depth=3, num_heads=4, num_classes=0
    ).eval()
    nn.init.normal_(theirs.cls_token)
    nn.init.normal_(theirs.pos_embed)
    patches = AudioPatches((16, 8), (4, 4))
    ours = Encoder(patches, width=48, layers=uniform(3, 4, 192), head_width=12, learned_positions=True)
    weights = {k: v for k, v in theirs.state_dict().items() if k.startswith(("blocks.", "norm."))}
    weights["patch_embed.weight"] = theirs.patch_embed.proj.weight.detach().reshape(48, 16 * 8)
    weights["patch_embed.bias"] = theirs.patch_embed.proj.bias.detach()
    weights["cls_token"] = (theirs.cls_token + theirs.pos_embed[:, :1]).detach()
    weights["position_table"] = theirs.pos_embed[:, 1:].detach()
    ours.load_state_dict(weights)
    image_BFM = torch.randn(2, 64, 32)
    expected = theirs.forward_features(image_BFM[:, None])
    torch.testing.assert_close(ours(patchify_audio(image_BFM, (16, 8))), expected, atol=1e-5, rtol=0)


def test_encoder_of_some_patches_is_the_vit_of_those_tokens() -> None:
    """Order and company of patches do not matter; only which are given."""
    encoder = Encoder(AudioPatches((2, 4), (4, 4)), width=48, layers=uniform(2, 4, 192), head_width=12)
    patches_BLP = torch.randn(2, 16, 8)
    ids_BK = torch.tensor([[3, 9, 14], [0, 5, 6]])
    given = patches_BLP.gather(1, ids_BK[:, :, None].expand(-1, -1, 8))
    out = encoder(given, ids_BK)
    flipped = encoder(given.flip(1), ids_BK.flip(1))
    torch.testing.assert_close(out[:, 1:], flipped[:, 1:].flip(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(out[:1], encoder(given[:1], ids_BK[:1]), atol=1e-5, rtol=0)


def test_attention_scale_and_split_follow_the_formula() -> None:
    attention, x_LD = Attention(12, 3), torch.randn(5, 12)
    q, k, v = attention.qkv(x_LD).split(12, dim=-1)
    heads = []
    for i in range(3):
        part = slice(4 * i, 4 * i + 4)
        weights = torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(4), dim=-1)
        heads.append(weights @ v[:, part])
    expected = attention.proj(torch.cat(heads, dim=-1))
    torch.testing.assert_close(attention(x_LD[None])[0], expected, atol=1e-5, rtol=0)


def test_attention_obeys_its_mask() -> None:
    attention, x_BLD = Attention(12, 3), torch.randn(1, 6, 12)
    allowed = torch.block_diag(torch.ones(2, 2), torch.ones(4, 4)).bool()[None, None]
    apart = torch.cat([attention(x_BLD[:, :2]), attention(x_BLD[:, 2:])], dim=1)
    torch.testing.assert_close(attention(x_BLD, allowed), apart, atol=1e-5, rtol=0)


def test_cross_attention_equals_torchs() -> None:
    ours, theirs = CrossAttention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.in_proj_weight.data = torch.cat([ours.q.weight, ours.kv.weight]).detach()
    theirs.in_proj_bias.data = torch.cat([ours.q.bias, ours.kv.bias]).detach()
    theirs.out_proj.load_state_dict(ours.proj.state_dict())
    x_BLD, context_BCD = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    expected, _ = theirs(x_BLD, context_BCD, context_BCD)
    torch.testing.assert_close(ours(x_BLD, context_BCD), expected, atol=1e-5, rtol=0)


def test_timestep_sinusoids_equal_diffusers() -> None:
    embedding = TimestepEmbedding(16)
    timestep_B = torch.tensor([0, 1, 500, 999])
    sinusoids = get_timestep_embedding(timestep_B, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    expected = embedding.fc2(F.silu(embedding.fc1(sinusoids)))
    torch.testing.assert_close(embedding(timestep_B), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["joint", "cross_self", "cross"])
def test_adaln_block_starts_closed_and_then_follows_time(kind: str) -> None:
    block = DecoderBlock(DecoderConfig(kind=kind, width=16, depth=1, heads=4), adaln=True)
    x_BND, context_BCD, time_BD = torch.randn(2, 5, 16), torch.randn(2, 3, 16), torch.randn(2, 16)
    nn.init.zeros_(block.modulation.weight)
    nn.init.zeros_(block.modulation.bias)
    assert torch.equal(block(x_BND, context_BCD, time_BD), x_BND)
    nn.init.normal_(block.modulation.weight)
    assert not torch.allclose(block(x_BND, context_BCD, time_BD), block(x_BND, context_BCD, -time_BD))


def test_adaln_modulation_by_hand() -> None:
    block = DecoderBlock(DecoderConfig(kind="cross", width=16, depth=1, heads=4), adaln=True)
    x_BND, context_BCD, time_BD = torch.randn(2, 5, 16), torch.randn(2, 3, 16), torch.randn(2, 16)
    s1, c1, g1, s2, c2, g2 = block.modulation(F.silu(time_BD))[:, None].chunk(6, dim=-1)

    def norm(x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (16,), eps=1e-6)

    expected = x_BND + g1 * block.cross_attn(norm(x_BND) * (1 + c1) + s1, context_BCD)
    expected = expected + g2 * block.mlp(norm(expected) * (1 + c2) + s2)
    torch.testing.assert_close(block(x_BND, context_BCD, time_BD), expected, atol=1e-5, rtol=0)


def test_joint_fusion_is_plain_blocks_over_both() -> None:
    fusion = Fusion(FusionConfig(depth=2), 48, uniform(2, 4, 192), 12)
    audio_BKD, video_BKD = torch.randn(2, 5, 48), torch.randn(2, 7, 48)
    both = torch.cat([audio_BKD, video_BKD], dim=1)
    expected = fusion.norm(fusion.blocks[1](fusion.blocks[0](both)))
    out = torch.cat(fusion(audio_BKD, video_BKD), dim=1)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


def test_bottleneck_passes_information_only_from_the_second_layer_on() -> None:
    """Through the shared tokens, which carry a modality's content after one layer (MBT)."""
    audio_BKD, video_BKD = torch.randn(1, 5, 48), torch.randn(1, 7, 48)
    other_BKD = torch.randn(1, 7, 48)
    for depth, crosses in ((1, False), (2, True)):
        fusion = Fusion(FusionConfig(kind="bottleneck", depth=depth), 48, uniform(depth, 4, 192), 12)
        changed = not torch.allclose(fusion(audio_BKD, video_BKD)[0], fusion(audio_BKD, other_BKD)[0])
        assert changed == crosses
