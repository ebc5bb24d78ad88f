# METADATA
# title: TPM and firmware versions
# description: |
#   Settings: `data.countersign.settings.tpm.firmware`, an object from manufacturer to the least firmware version (16 hex digits, lower case);
#   `.tpm.ek_roots`, accepted roots of EK certificates; `.firmware.versions`, accepted texts of the firmware's version.
# scope: package
package countersign.lib.tpm

import data.countersign.settings

# METADATA
# title: hardware-tpm
# description: The TPM is neither simulated nor certified by a development CA.
# custom:
#   check: hardware-tpm
passed contains "hardware-tpm" if input.host.simulated == false

# METADATA
# title: ek-root
# description: The EK certificate's root is accepted.
# custom:
#   check: ek-root
passed contains "ek-root" if {
	is_string(input.host.ek_root)
	input.host.ek_root in settings.tpm.ek_roots
}

# METADATA
# title: tpm-firmware
# description: The TPM's firmware is at least the version that its manufacturer's entry asks for.
# custom:
#   check: tpm-firmware
passed contains "tpm-firmware" if {
	least := settings.tpm.firmware[input.host.tpm.manufacturer]
	regex.match("^[0-9a-f]{16}$", least)
	regex.match("^[0-9a-f]{16}$", input.quote.firmware_version)
	input.quote.firmware_version >= least
}

# METADATA
# title: firmware-version
# description: The platform's firmware has an accepted version (EV_S_CRTM_VERSION in PCR 0, or the facts of the boot).
# custom:
#   check: firmware-version
passed contains "firmware-version" if {
	count(versions) > 0
	every version in versions {
		version in settings.firmware.versions
	}
}

versions contains input.boot.facts.firmware_version.value if input.boot.facts.firmware_version.strength == "authenticated"

versions contains event.text if {
	some event in input.boot.events
	event.pcr == 0
	event.type == "EV_S_CRTM_VERSION"
	event.authentic == true
}

explanations contains {
	"id": "hardware-tpm",
	"message": "the TPM is simulated, or certified by a development CA",
	"want": "a hardware TPM of a known vendor",
}

explanations contains {
	"id": "ek-root",
	"message": "the EK certificate's root is not accepted",
	"got": input.host.ek_root,
	"want": "a root of settings.tpm.ek_roots",
}

explanations contains {
	"id": "tpm-firmware",
	"message": "the TPM's firmware is too old, or its manufacturer is unknown",
	"got": input.quote.firmware_version,
	"want": "at least the version of settings.tpm.firmware",
	"hint": "install the vendor's update of the TPM",
}

explanations contains {
	"id": "firmware-version",
	"message": "the platform's firmware version is not accepted",
	"got": concat(", ", versions),
	"want": "a version of settings.firmware.versions",
}
