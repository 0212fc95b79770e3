"""Getting a backbone: names, weights files, and what may be wrong with either. No test touches the network."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.families import scramble
from trimtab.errors import BackboneError
from trimtab.weights import load_backbone

NAME = "test_vit"


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """What the files of these tests were saved from."""
    return scramble(timm.create_model(NAME), seed=5).eval()


@pytest.fixture(scope="module")
def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))


def features(network: nn.Module, images: Tensor) -> Tensor:
    return network.forward_features(images)


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def flax_arrays(model: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    """The original ViT layout of big_vision's predecessor, which ``ViT-B_16.npz`` has."""
    arrays = {
        "cls": model.cls_token,
        "embedding/kernel": model.patch_embed.proj.weight.permute(2, 3, 1, 0),
        "embedding/bias": model.patch_embed.proj.bias,
        "Transformer/posembed_input/pos_embedding": model.pos_embed,
        "Transformer/encoder_norm/scale": model.norm.weight,
        "Transformer/encoder_norm/bias": model.norm.bias,
        "head/kernel": model.head.weight.T,
        "head/bias": model.head.bias,
        "pre_logits/kernel": torch.zeros(3, 3),
    }
    for i, block in enumerate(model.blocks):
        at, heads, width = f"Transformer/encoderblock_{i}", block.attn.num_heads, block.attn.head_dim
        attention = f"{at}/MultiHeadDotProductAttention_1"
        for part, weight, bias in zip(
            ("query", "key", "value"), block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3), strict=True
        ):
            arrays[f"{attention}/{part}/kernel"] = weight.T.reshape(-1, heads, width)
            arrays[f"{attention}/{part}/bias"] = bias.reshape(heads, width)
        arrays[f"{attention}/out/kernel"] = block.attn.proj.weight.T.reshape(heads, width, -1)
        arrays[f"{attention}/out/bias"] = block.attn.proj.bias
        for name, layer in (("LayerNorm_0", block.norm1), ("LayerNorm_2", block.norm2)):
            arrays[f"{at}/{name}/scale"], arrays[f"{at}/{name}/bias"] = layer.weight, layer.bias
        for j, layer in enumerate((block.mlp.fc1, block.mlp.fc2)):
            arrays[f"{at}/MlpBlock_3/Dense_{j}/kernel"] = layer.weight.T
            arrays[f"{at}/MlpBlock_3/Dense_{j}/bias"] = layer.bias
    return {name: value.detach().numpy() for name, value in arrays.items()}


class TestFiles:
    """Every kind of file gives the model it was saved from."""

    def test_safetensors(self, state: Any, model: nn.Module, images: Tensor, tmp_path: Path) -> None:
        save_file(state, tmp_path / "w.safetensors")
        loaded = load_backbone(NAME, weights=tmp_path / "w.safetensors")
        assert torch.equal(features(loaded.model, images), features(model, images))

    @pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
    def test_torch_state_dict(self, state: Any, model: nn.Module, images: Tensor, tmp_path: Path, suffix: str) -> None:
        torch.save(state, tmp_path / f"w{suffix}")
        loaded = load_backbone(NAME, weights=tmp_path / f"w{suffix}")
        assert torch.equal(features(loaded.model, images), features(model, images))

    @pytest.mark.parametrize("key", ["state_dict", "model"])
    def test_torch_checkpoint(self, state: Any, model: nn.Module, tmp_path: Path, key: str) -> None:
        torch.save({key: state, "epoch": 3}, tmp_path / "w.pth")
        loaded = load_backbone(NAME, weights=tmp_path / "w.pth")
        assert torch.equal(loaded.model.pos_embed, model.pos_embed)

    def test_official_npz(self, model: nn.Module, images: Tensor, tmp_path: Path) -> None:
        np.savez(tmp_path / "w.npz", **flax_arrays(model))
        loaded = load_backbone(NAME, weights=tmp_path / "w.npz")
        torch.testing.assert_close(loaded.model(images), model(images), atol=1e-6, rtol=1e-6)

    def test_half_precision_becomes_float32(self, state: Any, model: nn.Module, tmp_path: Path) -> None:
        save_file({name: value.half() for name, value in state.items()}, tmp_path / "w.safetensors")
        loaded = load_backbone(NAME, weights=tmp_path / "w.safetensors")
        assert loaded.model.pos_embed.dtype == torch.float32
        assert torch.equal(loaded.model.pos_embed, model.pos_embed.half().float())

    def test_fingerprint_is_the_same_from_every_kind_of_file(
        self, state: Any, model: nn.Module, tmp_path: Path
    ) -> None:
        save_file(state, tmp_path / "w.safetensors")
        torch.save(state, tmp_path / "w.pth")
        np.savez(tmp_path / "w.npz", **flax_arrays(model))
        prints = {load_backbone(NAME, weights=path).fingerprint for path in tmp_path.iterdir()}
        assert len(prints) == 1

    @pytest.mark.parametrize("classes", [0, 7])
    def test_classifier_may_be_of_another_size_or_missing(
        self, state: Any, model: nn.Module, images: Tensor, tmp_path: Path, classes: int
    ) -> None:
        body = {name: value for name, value in state.items() if not name.startswith("head.")}
        if classes:
            body |= {"head.weight": torch.randn(classes, 64), "head.bias": torch.randn(classes)}
        save_file(body, tmp_path / "w.safetensors")
        loaded = load_backbone(NAME, weights=tmp_path / "w.safetensors")
        assert torch.equal(features(loaded.model, images), features(model, images))

    def test_path_may_be_text(self, state: Any, tmp_path: Path) -> None:
        save_file(state, tmp_path / "w.safetensors")
        assert load_backbone(NAME, weights=str(tmp_path / "w.safetensors")).name == NAME

    def test_image_size_is_set(self, state: Any, tmp_path: Path) -> None:
        save_file(state, tmp_path / "w.safetensors")
        loaded = load_backbone(NAME, weights=tmp_path / "w.safetensors", image_size=(64, 96))
        assert loaded.image_size == (64, 96)

    def test_name_keeps_its_tag(self, state: Any, tmp_path: Path) -> None:
        save_file(state, tmp_path / "w.safetensors")
        loaded = load_backbone("test_vit.r160_in1k", weights=tmp_path / "w.safetensors")
        assert loaded.name == "test_vit.r160_in1k"


class TestNames:
    """Names that timm does not have."""

    def test_unknown_model_offers_the_nearest(self) -> None:
        with pytest.raises(BackboneError, match=r"no model 'vit_bas_patch16_224'.*'vit_base_patch16_224'"):
            load_backbone("vit_bas_patch16_224")

    def test_unknown_tag_offers_the_nearest_and_lists_all(self) -> None:
        with pytest.raises(BackboneError, match=r"no pretrained tag 'r161_in1k'.*'r160_in1k'.*It has: "):
            load_backbone("test_vit.r161_in1k")

    def test_model_that_cannot_be_opened_is_refused_before_any_download(self, monkeypatch: pytest.MonkeyPatch) -> None:
        create = timm.create_model

        def offline(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
            assert not pretrained
            return create(name, **options)

        monkeypatch.setattr(timm, "create_model", offline)
        with pytest.raises(BackboneError, match="neither a timm VisionTransformer nor an Eva"):
            load_backbone("test_resnet")


class TestBadFiles:
    """Files that cannot be used: one line, with the name and the way out."""

    def refused(self, path: Path, match: str) -> None:
        with pytest.raises(BackboneError, match=match) as caught:
            load_backbone(NAME, weights=path)
        assert "\n" not in str(caught.value)

    def test_missing(self, tmp_path: Path) -> None:
        self.refused(tmp_path / "none.safetensors", r"no weights file '.*none\.safetensors'.*--weights")

    def test_folder(self, tmp_path: Path) -> None:
        self.refused(tmp_path, "no weights file")

    def test_unknown_suffix(self, tmp_path: Path) -> None:
        (tmp_path / "w.h5").touch()
        self.refused(tmp_path / "w.h5", r"ends in '\.h5'; use one of \.safetensors")

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".npz"])
    @pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.99])
    def test_truncated(self, state: Any, model: nn.Module, tmp_path: Path, suffix: str, part: float) -> None:
        path = tmp_path / f"w{suffix}"
        if suffix == ".safetensors":
            save_file(state, path)
        elif suffix == ".pth":
            torch.save(state, path)
        else:
            np.savez(path, **flax_arrays(model))
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * part)])
        self.refused(path, r"Weights file 'w\..*' cannot be read")

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".npz"])
    def test_garbage(self, tmp_path: Path, suffix: str) -> None:
        (tmp_path / f"w{suffix}").write_bytes(b"These are not weights.\n" * 20)
        self.refused(tmp_path / f"w{suffix}", "cannot be read")

    @pytest.mark.parametrize("other", ["test_vit2", "test_resnet", "test_vit3"])
    def test_of_another_model(self, tmp_path: Path, other: str) -> None:
        save_file(timm.create_model(other).state_dict(), tmp_path / "w.safetensors")
        self.refused(tmp_path / "w.safetensors", r"'w\.safetensors' (is not of|cannot be read into) 'test_vit'")

    def test_npz_of_something_else(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "w.npz", prompts=np.zeros(3))
        self.refused(tmp_path / "w.npz", "cannot be read")

    def test_with_a_tensor_missing(self, state: Any, tmp_path: Path) -> None:
        less = {name: value for name, value in state.items() if name != "blocks.1.norm1.weight"}
        save_file(less, tmp_path / "w.safetensors")
        self.refused(tmp_path / "w.safetensors", r"1 tensors missing \(blocks\.1\.norm1\.weight\), 0 unknown")

    def test_with_a_tensor_too_many(self, state: Any, tmp_path: Path) -> None:
        save_file({**state, "prompts": torch.zeros(2)}, tmp_path / "w.safetensors")
        self.refused(tmp_path / "w.safetensors", r"0 tensors missing \(-\), 1 unknown \(prompts\)")

    def test_with_no_tensors_at_all(self, tmp_path: Path) -> None:
        torch.save([1, 2, 3], tmp_path / "w.pth")
        self.refused(tmp_path / "w.pth", "cannot be read")

    @pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
    @pytest.mark.parametrize("zipped", [True, False])
    def test_pickled_code_never_runs(self, tmp_path: Path, suffix: str, zipped: bool) -> None:
        path = tmp_path / f"w{suffix}"
        torch.save({"head.weight": Malicious(tmp_path / "ran")}, path, _use_new_zipfile_serialization=zipped)
        self.refused(path, "pickled code, which is never run")
        assert not (tmp_path / "ran").exists()

    def test_bare_pickle_never_runs(self, tmp_path: Path) -> None:
        (tmp_path / "w.pth").write_bytes(pickle.dumps(Malicious(tmp_path / "ran"), protocol=2))
        self.refused(tmp_path / "w.pth", "cannot be read")
        assert not (tmp_path / "ran").exists()

    def test_pickled_code_in_npz_never_runs(self, tmp_path: Path) -> None:
        hidden = np.array([Malicious(tmp_path / "ran")], dtype=object)
        np.savez(tmp_path / "w.npz", **{"embedding/kernel": hidden})
        self.refused(tmp_path / "w.npz", "cannot be read")
        assert not (tmp_path / "ran").exists()


class TestDownload:
    """timm's own download fails in many ways; the user reads one."""

    @pytest.mark.parametrize(
        "failure",
        [
            ConnectionError("Name or service not known"),
            OSError("We couldn't connect to\n'https://huggingface.co'"),
            RuntimeError("No pretrained weights exist"),
            ValueError("odd"),
        ],
    )
    def test_failure_is_one_line_with_the_way_out(self, monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
        create = timm.create_model

        def offline(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
            if pretrained:
                raise failure
            return create(name, **options)

        monkeypatch.setattr(timm, "create_model", offline)
        with pytest.raises(BackboneError, match=r"could not be fetched.*--weights FILE") as caught:
            load_backbone(NAME)
        assert "\n" not in str(caught.value)
        assert caught.value.__cause__ is failure

    def test_downloaded_weights_are_used(self, monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> None:
        create = timm.create_model
        monkeypatch.setattr(
            timm, "create_model", lambda name, *, pretrained=False: model if pretrained else create(name)
        )
        assert load_backbone(NAME).model is model

    def test_model_that_timm_cannot_build_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(name: str, **options: Any) -> nn.Module:
            raise RuntimeError("no")

        monkeypatch.setattr(timm, "create_model", broken)
        with pytest.raises(BackboneError, match=r"timm could not build 'test_vit' \(RuntimeError: no\)"):
            load_backbone(NAME)
