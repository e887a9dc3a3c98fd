"""What a run keeps for the next, and what of a bundle does not depend on the run."""

KEPT = ("synthesize", "scan", "purify", "ranks", "finetune")
FUNCTIONS = ("synthesize", "scan", "purify", "choose_plan", "finetune")
BOUND = ("model.onnx", "manifest.json", "golden.safetensors", "bom.cdx.json")
