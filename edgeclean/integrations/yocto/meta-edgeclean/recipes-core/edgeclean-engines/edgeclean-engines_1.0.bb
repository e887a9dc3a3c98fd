SUMMARY = "Builds a TensorRT engine for each edgeclean model of the image, at the first boot"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

SRC_URI = "\
    file://edgeclean-build-engines \
    file://edgeclean-engines.service \
    file://edgeclean-engines.default \
"
S = "${@d.getVar('UNPACKDIR') or d.getVar('WORKDIR')}"

inherit systemd

SYSTEMD_SERVICE:${PN} = "edgeclean-engines.service"

# meta-tegra's name of trtexec; set it to what your BSP has.
EDGECLEAN_TRTEXEC_PACKAGE ?= "tensorrt-trtexec-prebuilt"
RDEPENDS:${PN} = "${EDGECLEAN_TRTEXEC_PACKAGE}"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -d "${D}${libexecdir}" "${D}${systemd_system_unitdir}" "${D}${sysconfdir}/default"
    install -m 0755 "${S}/edgeclean-build-engines" "${D}${libexecdir}/"
    install -m 0644 "${S}/edgeclean-engines.default" "${D}${sysconfdir}/default/edgeclean-engines"
    install -m 0644 "${S}/edgeclean-engines.service" "${D}${systemd_system_unitdir}/"
    sed -i -e 's,/usr/libexec,${libexecdir},' \
        "${D}${systemd_system_unitdir}/edgeclean-engines.service"
}

FILES:${PN} += "${systemd_system_unitdir}/edgeclean-engines.service"
CONFFILES:${PN} = "${sysconfdir}/default/edgeclean-engines"
