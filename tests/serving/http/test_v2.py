"""The Open Inference Protocol: what KServe's probes and Triton's client send."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from tests.serving.served import Server, picture


def packed(values: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def unpacked(content: bytes) -> list[bytes]:
    found = []
    while content:
        end = 4 + struct.unpack("<I", content[:4])[0]
        found.append(content[4:end])
        content = content[end:]
    return found


def in_json(images: list[bytes], **more: Any) -> dict[str, Any]:
    data = [base64.b64encode(image).decode() for image in images]
    return {"inputs": [{"name": "image", "shape": [len(images)], "datatype": "BYTES", "data": data}], **more}


def in_binary(images: list[bytes], **more: Any) -> tuple[bytes, dict[str, str]]:
    behind = packed(images)
    tensor = {
        "name": "image",
        "shape": [len(images), 1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(behind)},
    }
    header = json.dumps({"inputs": [tensor], **more}).encode()
    return header + behind, {"Inference-Header-Content-Length": str(len(header))}


def test_probes_and_metadata(server: Server) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/first/ready", "/v2/models/first/versions/1/ready"):
        assert server.ask("GET", path).status == 200
    assert server.ask("GET", "/v2").json["extensions"] == ["binary_tensor_data"]
    model = server.ask("GET", "/v2/models/first").json
    assert (model["name"], model["versions"], model["inputs"][0]["datatype"]) == ("first", ["1"], "BYTES")
    assert server.ask("GET", "/v2/models/nope/ready").status == 404
    assert server.ask("GET", "/v2/models/first/versions/2").status == 404


def test_images_in_base64(server: Server) -> None:
    images = [picture(1), picture(2)]
    value = server.post("/v2/models/second/infer", in_json(images, id="mine", parameters={"top_k": 3})).json
    assert (value["model_name"], value["id"]) == ("second", "mine")
    label, score = value["outputs"]
    assert (label["name"], label["shape"], label["datatype"]) == ("label", [2, 3], "BYTES")
    assert (score["name"], score["shape"], score["datatype"]) == ("score", [2, 3], "FP32")
    plain = [one for image in images for one in server.post("/predict/second?top_k=3", image).json]
    assert label["data"] == [one["label"] for one in plain]
    assert score["data"] == pytest.approx([one["score"] for one in plain], abs=1e-5)


def test_tensors_behind_the_json(server: Server) -> None:
    """As tritonclient.http sends it: BYTES with their lengths, and all outputs asked for in binary."""
    body, headers = in_binary([picture(3)], parameters={"binary_data_output": True})
    reply = server.ask("POST", "/v2/models/second/versions/1/infer", body, headers)
    length = int(reply.headers["inference-header-content-length"])
    value, behind = json.loads(reply.content[:length]), reply.content[length:]
    label, score = value["outputs"]
    size = label["parameters"]["binary_data_size"]
    assert size + score["parameters"]["binary_data_size"] == len(behind)
    plain = server.post("/predict/second", picture(3)).json
    assert [text.decode() for text in unpacked(behind[:size])] == [one["label"] for one in plain]
    scores = struct.unpack("<5f", behind[size:])
    assert scores == pytest.approx([one["score"] for one in plain], abs=1e-5)


def test_outputs_that_are_named(server: Server) -> None:
    outputs = [{"name": "score", "parameters": {"binary_data": True}}, {"name": "label"}]
    body, headers = in_binary([picture(3)], outputs=outputs)
    reply = server.ask("POST", "/v2/models/first/infer", body, headers)
    length = int(reply.headers["inference-header-content-length"])
    label, score = json.loads(reply.content[:length])["outputs"]
    assert len(label["data"]) == 4
    assert len(reply.content) - length == score["parameters"]["binary_data_size"] == 16


def test_masks(server: Server) -> None:
    value = server.post("/v2/models/pixels/infer", in_json([picture(3)])).json
    label, score, mask = value["outputs"]
    plain = server.post("/predict/pixels", picture(3)).json
    assert (label["data"], mask["data"]) == ([one["label"] for one in plain], [one["mask"] for one in plain])
    assert len(score["data"]) == len(plain)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"inputs": []}, "one tensor"),
        ({"inputs": [3]}, "one tensor"),
        ({"inputs": [{"datatype": "FP32", "shape": [1], "data": [1.0]}]}, "as BYTES"),
        ({"inputs": [{"datatype": "BYTES", "shape": [1]}]}, '"data"'),
        ({"inputs": [{"datatype": "BYTES", "shape": [2], "data": ["AAAA"]}]}, "shape"),
        ({"inputs": [{"datatype": "BYTES", "shape": [1] * 50, "data": ["AAAA"]}]}, "shape"),
        ({"inputs": [{"datatype": "BYTES", "shape": [-1], "data": ["AAAA"]}]}, "shape"),
        ({"inputs": [{"datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 9}}]}, "behind"),
        ({"outputs": [{"name": "logits"}]}, "no output"),
        ({"outputs": 3}, "outputs"),
        ({"parameters": 3}, "parameters"),
    ],
)
def test_what_cannot_be_read_is_told(server: Server, change: dict[str, Any], word: str) -> None:
    reply = server.post("/v2/models/first/infer", in_json([picture()]) | change)
    assert reply.status == 400
    assert word in reply.error


@pytest.mark.parametrize("length", ["x", "-1", "99999999", "9" * 5000, "0" * 5000, "¹"])
def test_a_wrong_length_of_the_json_is_told(server: Server, length: str) -> None:
    body, _ = in_binary([picture()])
    reply = server.ask("POST", "/v2/models/first/infer", body, {"Inference-Header-Content-Length": length})
    assert reply.status == 400
    assert "Inference-Header-Content-Length" in reply.error
