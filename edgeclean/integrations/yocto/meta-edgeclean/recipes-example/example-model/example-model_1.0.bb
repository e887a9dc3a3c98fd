SUMMARY = "A classifier, purified and compressed by edgeclean"
DESCRIPTION = "An example: put a bundle into files/bundle beside this recipe, and its hash below."
LICENSE = "CLOSED"

SRC_URI = "file://bundle"

EDGECLEAN_MODEL = "example"
# sha256sum files/bundle/manifest.json
EDGECLEAN_MANIFEST_SHA256 = ""

inherit edgeclean-model
