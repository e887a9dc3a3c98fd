# A bundle of edgeclean as data of an image.
#
# The bundle is made before, where there is a Python with PyTorch (`edgeclean compress`, or the CMake
# and Make parts beside this layer), and the recipe fetches it like any other source. It is data for
# every machine: the engine is built on the device, by the recipe edgeclean-engines, which an image
# installs beside its models. (A package for all machines cannot depend on one for a machine.)
#
# A recipe gives:
#   EDGECLEAN_BUNDLE            the bundle's folder after unpacking
#   EDGECLEAN_MANIFEST_SHA256   of manifest.json, whose entry binds model.onnx; another one stops the
#                               build
#   EDGECLEAN_MODEL             the name on the device, the recipe's own if not given

inherit allarch

EDGECLEAN_MODEL ?= "${BPN}"
EDGECLEAN_BUNDLE ?= "${@d.getVar('UNPACKDIR') or d.getVar('WORKDIR')}/bundle"
EDGECLEAN_MANIFEST_SHA256 ?= ""

# The folder of its own that a recipe has by default is not there: a bundle is no source package.
S = "${@d.getVar('UNPACKDIR') or d.getVar('WORKDIR')}"

INHIBIT_DEFAULT_DEPS = "1"

do_configure[noexec] = "1"

# The manifest's line for model.onnx alone says what the network is: the hash of another file of the
# bundle, such as kit/original.onnx, stands in it too. In a form that edgeclean does not write it is
# not found, and the build stops. `sha256sum --check` fails where it gets no line.
do_compile() {
    cd "${EDGECLEAN_BUNDLE}"
    if [ -z "${EDGECLEAN_MANIFEST_SHA256}" ]; then
        bbfatal "give EDGECLEAN_MANIFEST_SHA256, the first field of: sha256sum manifest.json"
    fi
    echo "${EDGECLEAN_MANIFEST_SHA256}  manifest.json" | sha256sum --check --strict --quiet \
        || bbfatal "this is not the bundle that the recipe names"
    network=$(sed -n '/^  "files": {$/,/^  }/{/^    "model\.onnx": {$/,/^    }/s/^      "sha256": "\([0-9a-f]\{64\}\)"$/\1/p;}' manifest.json)
    if [ "$(printf '%s' "$network" | wc -c)" -ne 64 ]; then
        bbfatal "the manifest does not name one model.onnx"
    fi
    echo "$network  model.onnx" | sha256sum --check --strict --quiet \
        || bbfatal "the manifest names another model.onnx"
    # Every line as edgeclean writes it: no ./ or ../, no escape, no other format of sha256sum.
    if grep -qvx '[0-9a-f]\{64\}  [A-Za-z0-9_][A-Za-z0-9._-]*\(/[A-Za-z0-9_][A-Za-z0-9._-]*\)*' SHA256SUMS; then
        bbfatal "SHA256SUMS has a line that edgeclean does not write"
    fi
    if [ -n "$(cut -c 67- SHA256SUMS | sort | uniq -d)" ]; then
        bbfatal "SHA256SUMS names a file twice"
    fi
    if ! grep -qx "$network  model\.onnx" SHA256SUMS; then
        bbfatal "SHA256SUMS names another model.onnx than the manifest"
    fi
    sha256sum --check --strict --quiet SHA256SUMS || bbfatal "the bundle was changed"
}

do_install() {
    place="${D}${datadir}/edgeclean/${EDGECLEAN_MODEL}"
    install -d "$place"
    for file in model.onnx manifest.json SHA256SUMS; do
        install -m 0644 "${EDGECLEAN_BUNDLE}/$file" "$place/"
    done
    # The folder may have changed since do_compile: what is installed is looked at once more.
    cd "$place"
    network=$(sed -n '/^  "files": {$/,/^  }/{/^    "model\.onnx": {$/,/^    }/s/^      "sha256": "\([0-9a-f]\{64\}\)"$/\1/p;}' manifest.json)
    printf '%s  %s\n' "${EDGECLEAN_MANIFEST_SHA256}" manifest.json "$network" model.onnx \
        | sha256sum --check --strict --quiet || bbfatal "the bundle changed while it was built"
}

FILES:${PN} = "${datadir}/edgeclean/${EDGECLEAN_MODEL}"
