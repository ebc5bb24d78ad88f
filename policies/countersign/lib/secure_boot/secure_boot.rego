# METADATA
# title: Secure Boot
# scope: package
package countersign.lib.secure_boot

# METADATA
# title: secure-boot
# description: The firmware measured the variable SecureBoot as on, in an event whose data hashes to its digest.
# custom:
#   check: secure-boot
passed contains "secure-boot" if input.boot.secure_boot == true

explanations contains {
	"id": "secure-boot",
	"message": "the host did not prove that Secure Boot is on",
	"subject": "variable SecureBoot (PCR 7)",
	"got": state,
	"want": "on",
	"hint": "switch Secure Boot on in the firmware's set-up and reboot",
}

default state := "unknown"

state := "off" if input.boot.secure_boot == false

state := "on" if input.boot.secure_boot == true
