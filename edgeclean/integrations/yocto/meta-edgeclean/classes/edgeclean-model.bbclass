# A bundle of edgeclean as data of an image.
#
# The bundle is made before, where there is a Python with PyTorch (`edgeclean compress`, or the CMake
# and Make parts beside this layer), and the recipe fetches it like any other source. It is data for
# every machine: the engine is built on the device, by the recipe edgeclean-engines, which an image
# installs beside its models. (A package for all machines cannot depend on one for a machine.)
#
# A recipe gives:
#   EDGECLEAN_BUNDLE            the bundle's folder after unpacking
#   EDGECLEAN_MANIFEST_SHA256   of manifest.json, which binds model.onnx; the build stops at another
#   EDGECLEAN_MODEL             the name on the device, the recipe's own if not given

inherit allarch

EDGECLEAN_MODEL ?= "${BPN}"
EDGECLEAN_BUNDLE ?= "${@d.getVar('UNPACKDIR') or d.getVar('WORKDIR')}/bundle"
EDGECLEAN_MANIFEST_SHA256 ?= ""

INHIBIT_DEFAULT_DEPS = "1"

do_configure[noexec] = "1"

do_compile() {
    cd "${EDGECLEAN_BUNDLE}"
    sha256sum --check --strict --quiet SHA256SUMS || bbfatal "the bundle was changed"
    if [ -z "${EDGECLEAN_MANIFEST_SHA256}" ]; then
        bbfatal "give EDGECLEAN_MANIFEST_SHA256, the first field of: sha256sum manifest.json"
    fi
    echo "${EDGECLEAN_MANIFEST_SHA256}  manifest.json" | sha256sum --check --strict --quiet \
        || bbfatal "this is not the bundle that the recipe names"
    # SHA256SUMS itself is bound by nothing: the manifest must name the network's hash too.
    onnx=$(sha256sum model.onnx | cut -d ' ' -f 1)
    grep -q "\"sha256\": \"$onnx\"" manifest.json || bbfatal "the manifest names another model.onnx"
}

do_install() {
    install -d "${D}${datadir}/edgeclean/${EDGECLEAN_MODEL}"
    for file in model.onnx manifest.json SHA256SUMS; do
        install -m 0644 "${EDGECLEAN_BUNDLE}/$file" "${D}${datadir}/edgeclean/${EDGECLEAN_MODEL}/"
    done
}

FILES:${PN} = "${datadir}/edgeclean/${EDGECLEAN_MODEL}"
