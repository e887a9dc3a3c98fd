"""Look up what a target supports: opset, precisions, rank multiples, accelerator, with sources.

The facts are in ``profiles/*.toml``. A device's software decides as much as its silicon: a Jetson
is a module with a generation of JetPack, whose TensorRT decides which opsets can be read, and
whether engines for the deep learning accelerator (DLA) can still be built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeclean.devices.profile_files import (
    choose_generation,
    converter_facts,
    generations,
    gpu_facts,
    profile_names,
    read_profile,
    shipped_profile,
)
from edgeclean.errors import UsageError

PRECISION_BITS = {"fp32": 32, "tf32": 19, "bf16": 16, "fp16": 16, "int8": 8, "fp8": 8, "fp4": 4}
GENERATION_FACTS = ("tensorrt", "cuda", "opset", "opset_min", "opset_max")
KIND_ORDER = ("cpu", "jetson", "rtx", "npu", "mcu")
CONVERTERS = ("rknn", "hailo", "stedgeai", "esp-dl")  # which their vendors alone have
_EXPORTER = {
    "value": "torchscript",
    "source": "measured: the newer exporter cannot go below opset 18 and writes ReduceMean for "
    "global average pooling",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A device with its software.

    Attributes:
        name: the name that the user gave.
        title: the device's name in words.
        kind: "cpu", "jetson", "rtx", "npu" for other accelerators or "mcu" for microcontrollers.
        alias_of: the target that the name stands for; None where it is no alias.
        module: the Jetson module, which decides about the accelerator.
        jetpack: the generation of JetPack; None where there is no JetPack.
        jetpacks: all generations of JetPack that the module has; empty where there is none.
        chip: the name of its chip; None where it is not known.
        compute_capability: the GPU's compute capability; None without a GPU.
        runtime: "onnxruntime", "tensorrt", "tensorrt-rtx", or another that a bundle holds files of:
            "openvino", "ncnn" or "mnn"; or the vendor's converter that a hand-over kit is for:
            "rknn", "hailo", "stedgeai" or "esp-dl".
        tensorrt: version range of TensorRT; None without it.
        cuda: version of CUDA; None without it.
        opset: opset of the ONNX file that is written.
        opset_min: lowest opset that the device reads.
        opset_max: highest opset that the device reads.
        exporter: the one of PyTorch's exporters that writes the file.
        precisions: precisions that the device computes in.
        default_precision: precision that it computes in unless the user chooses another.
        rank_multiples: multiples of channels that its kernels run best at, by precision.
        dla_cores: accelerators that this generation's TensorRT can build for.
        dla_rank_multiples: the same multiples on the accelerator, by the precisions that it has.
        memory_gb: memory in GB, by module variant; empty where it is not known.
        converter_target: the chip's name for the vendor's converter; None without one.
        operators: the ONNX operators that the converter's documentation lists; empty where there
            is no converter, or no list that can be read.
        scales: what has a scale of its own in INT8: "channel" of the weights, or "tensor".
        sources: the source of each fact, by field; "unverified" for none.
    """

    name: str
    title: str
    kind: str
    alias_of: str | None
    module: str | None
    jetpack: str | None
    jetpacks: tuple[str, ...]
    chip: str | None
    compute_capability: str | None
    runtime: str
    tensorrt: str | None
    cuda: str | None
    opset: int
    opset_min: int
    opset_max: int
    exporter: str
    precisions: tuple[str, ...]
    default_precision: str
    rank_multiples: dict[str, int]
    dla_cores: int
    dla_rank_multiples: dict[str, int]
    memory_gb: tuple[int, ...]
    converter_target: str | None
    operators: tuple[str, ...]
    scales: str
    sources: dict[str, str]

    @property
    def description(self) -> str:
        """One line that names the device, its software and the format of the file."""
        software = [f"JetPack {self.jetpack}"] if self.jetpack else []
        software.append(f"{self.runtime} {self.tensorrt or ''}".strip())
        return f"{self.title}; {', '.join(software)}; opset {self.opset}, {self.default_precision}"

    def rank_multiple(self, precision: str | None = None, *, dla: bool = False) -> int:
        """Return the multiple that ranks should have, where a layer is wide enough.

        Raises:
            UsageError: the device does not compute in this precision, or has no such accelerator.
        """
        precision = precision or self.default_precision
        require(self, precision=precision, dla=dla)
        return (self.dla_rank_multiples if dla else self.rank_multiples)[precision]


def load_target(
    name: str | None = None, *, jetpack: str | None = None, target_file: Path | None = None
) -> Target:
    """Look up a device, or read one from the user's own file.

    Args:
        name: name of a target of `list_targets`; may be left out with ``target_file``.
        jetpack: a release such as "5.1.2", or a generation's name; None for the profile's default.
        target_file: a TOML profile like the shipped ones; ``extends = "orin-nx"`` takes over the
            facts that it does not give itself.

    Raises:
        UsageError: the name or the release is unknown, or the file does not fit the schema.
    """
    if target_file is None:
        if name is None:
            raise UsageError(f"no target was named; known are {', '.join(profile_names())}")
        return _resolve(shipped_profile(name), jetpack)
    profile = read_profile(target_file)
    if name not in (None, profile["name"]):
        raise UsageError(
            f"target {name!r} was asked and {target_file.name} describes {profile['name']!r}; "
            "leave one of the two out"
        )
    return _resolve(profile, jetpack)


def list_targets() -> tuple[Target, ...]:
    """Return every shipped target with its default software: CPU, Jetson, RTX."""
    targets = [load_target(name) for name in profile_names()]
    return tuple(sorted(targets, key=lambda target: (KIND_ORDER.index(target.kind), target.name)))


def require(
    target: Target, *, precision: str | None = None, opset: int | None = None, dla: bool = False
) -> None:
    """Refuse what the device cannot do, with the reason and the nearest alternative.

    Raises:
        UsageError: the precision, the opset or the accelerator is out of the device's reach.
    """
    if precision is not None and precision not in PRECISION_BITS:
        raise UsageError(
            f"precision {precision!r} is not known; known are {', '.join(PRECISION_BITS)}"
        )
    if precision is not None and precision not in target.precisions:
        _refuse_precision(target, precision)
    if opset is not None and not target.opset_min <= opset <= target.opset_max:
        _refuse_opset(target, opset)
    if dla and not target.dla_cores:
        _refuse_dla(target)
    if dla and precision is not None and precision not in target.dla_rank_multiples:
        raise UsageError(
            f"the DLA of {target.name} computes in {' and '.join(target.dla_rank_multiples)}; "
            f"{precision} was asked: use fp16"
        )


def _refuse_precision(target: Target, precision: str) -> None:
    bits = PRECISION_BITS[precision]
    enough = [other for other in target.precisions if PRECISION_BITS[other] >= bits]
    nearest = min(enough, key=PRECISION_BITS.__getitem__)
    having = [other.name for other in list_targets() if precision in other.precisions]
    if target.runtime in CONVERTERS:
        raise UsageError(
            f"the kit for {target.name} takes a network in {' or '.join(target.precisions)}, and "
            f"{precision} was asked: use {nearest}; the vendor's converter quantises it"
        )
    raise UsageError(
        f"{target.name} (compute capability {target.compute_capability or 'none'}) does not "
        f"compute in {precision}; it has {', '.join(target.precisions)}: use {nearest}, or "
        f"a target with {precision} ({', '.join(having)})"
    )


def _refuse_opset(target: Target, opset: int) -> None:
    software = f"JetPack {target.jetpack}" if target.jetpack else target.runtime
    nearest = min(max(opset, target.opset_min), target.opset_max)
    raise UsageError(
        f"{target.name} with {software} reads opset {target.opset_min} to {target.opset_max}; "
        f"{opset} was asked: use {nearest}{or_jetpack(target, opset)}"
    )


def or_jetpack(target: Target, opset: int) -> str:
    """Return the end of a refusal: the generations of JetPack that read an opset; "" for none."""
    others = [
        generation["name"]
        for generation in generations()
        if generation["name"] in target.jetpacks
        and generation["opset_min"]["value"] <= opset <= generation["opset_max"]["value"]
    ]
    return f", or JetPack {' or '.join(others)}" if others else ""


def _refuse_dla(target: Target) -> None:
    reason = target.sources.get("dla_cores", "it is not a Jetson")
    able = [
        f"{name} with JetPack {generation['name']}"
        for generation in reversed(generations())
        for name in generation["dla"]["value"]
    ]
    own = [place for place in able if place.startswith(f"{target.module} ")]
    software = f" with JetPack {target.jetpack}" if target.jetpack else ""
    raise UsageError(
        f"{target.name}{software} has no DLA that TensorRT can build for ({reason}); DLA is on "
        f"{', '.join(own or able[:3])}"
    )


def _resolve(profile: Mapping[str, Any], jetpack: str | None) -> Target:
    """Join the facts of GPU, generation of JetPack and profile; the later one wins."""
    facts: dict[str, Any] = {
        "exporter": _EXPORTER,
        **gpu_facts(profile),
        **converter_facts(profile),
    }
    generation = choose_generation(profile, jetpack)
    if generation is not None:
        facts["runtime"] = {"value": "tensorrt", "source": "part of JetPack"}
        facts.update({key: generation[key] for key in GENERATION_FACTS})
    facts.update({key: fact for key, fact in profile.items() if isinstance(fact, dict)})
    if generation is not None and profile.get("module") not in generation["dla"]["value"]:
        own = facts.get("dla_cores", {"value": 0, "source": generation["dla"]["source"]})
        source = generation["dla"]["source"] if own["value"] else own["source"]
        facts["dla_cores"] = {"value": 0, "source": source}
    _refuse_contradictions(profile["name"], facts)
    return _target(profile, None if generation is None else generation["name"], facts)


def _refuse_contradictions(name: str, facts: Mapping[str, Any]) -> None:
    """Refuse a user's profile that fits the schema and still describes no device."""
    missing = {"opset", "opset_min", "opset_max", "precisions", "rank_multiples"} - set(facts)
    if missing:
        raise UsageError(
            f"target {name!r} does not say {sorted(missing)[0]!r}; add it with its source, or "
            "extend a shipped target"
        )
    precisions = facts["precisions"]["value"]
    without_multiple = set(precisions) - set(facts["rank_multiples"]["value"])
    unknown = set(precisions) - set(PRECISION_BITS)
    if unknown or without_multiple or "fp32" not in precisions:
        raise UsageError(
            f"target {name!r} has the precisions {precisions}; they must hold fp32, each be one of "
            f"{list(PRECISION_BITS)}, and each have a rank multiple"
        )
    default = facts.get("default_precision", {"value": precisions[0]})["value"]
    if default not in precisions:
        raise UsageError(
            f"target {name!r} computes in {default} by default, which is not one of {precisions}"
        )
    low, opset, high = (facts[key]["value"] for key in ("opset_min", "opset", "opset_max"))
    if not low <= opset <= high:
        raise UsageError(
            f"target {name!r} asks for opset {opset}, outside of the {low} to {high} that it reads"
        )
    _refuse_wrong_runtime(name, facts)


def _refuse_wrong_runtime(name: str, facts: Mapping[str, Any]) -> None:
    """Refuse a runtime without what it needs, or with what only another could use."""
    runtime = facts.get("runtime", {"value": "onnxruntime"})["value"]
    if runtime in CONVERTERS and "converter_target" not in facts:
        raise UsageError(
            f"target {name!r} does not say 'converter_target', the chip's name for the vendor's "
            "converter; add it with its source"
        )
    if runtime not in CONVERTERS and "converter_target" in facts:
        raise UsageError(
            f"target {name!r} has a converter_target, which {runtime} does not use; leave it out, "
            f"or choose one of {', '.join(CONVERTERS)} as the runtime"
        )
    of_gpu = runtime.startswith("tensorrt")
    if of_gpu != ("compute_capability" in facts):
        wanted = "needs" if of_gpu else "does not use"
        raise UsageError(
            f"target {name!r} has the runtime {runtime}, which {wanted} a compute_capability"
        )


def _target(profile: Mapping[str, Any], jetpack: str | None, facts: Mapping[str, Any]) -> Target:
    def value(name: str, otherwise: Any = None) -> Any:
        return facts[name]["value"] if name in facts else otherwise

    precisions = tuple(value("precisions"))
    return Target(
        name=profile["name"],
        title=profile["title"],
        kind=profile.get("kind", "jetson" if jetpack else "cpu"),
        alias_of=profile.get("alias_of"),
        module=profile.get("module"),
        jetpack=jetpack,
        jetpacks=tuple(value("jetpacks", ())),
        chip=value("chip"),
        compute_capability=value("compute_capability"),
        runtime=value("runtime", "onnxruntime"),
        tensorrt=value("tensorrt"),
        cuda=value("cuda"),
        opset=value("opset"),
        opset_min=value("opset_min"),
        opset_max=value("opset_max"),
        exporter=value("exporter"),
        precisions=precisions,
        default_precision=value("default_precision", precisions[0]),
        rank_multiples={name: value("rank_multiples")[name] for name in precisions},
        dla_cores=value("dla_cores", 0),
        dla_rank_multiples=dict(value("dla_rank_multiples", {})) if value("dla_cores", 0) else {},
        memory_gb=tuple(value("memory_gb", ())),
        converter_target=value("converter_target"),
        operators=tuple(value("operators", ())),
        scales=value("scales", "channel"),
        sources={name: fact["source"] for name, fact in sorted(facts.items())},
    )
