# METADATA
# title: Unified kernel images
# description: For hosts whose firmware starts one signed image (systemd-stub) without a boot menu.
# scope: package
package countersign.lib.uki

zero := "0000000000000000000000000000000000000000000000000000000000000000"

# METADATA
# title: uki
# description: systemd-stub measured the image's kernel section into PCR 11.
# custom:
#   check: uki
passed contains "uki" if {
	some event in input.boot.events
	event.pcr == 11
	event.type == "EV_IPL"
	event.authentic == true
	event.text == ".linux"
}

# METADATA
# title: no-boot-menu
# description: PCR 8 was never extended, so no GRUB command or menu took part.
# custom:
#   check: no-boot-menu
passed contains "no-boot-menu" if input.pcrs.sha256["8"] == zero

explanations contains {
	"id": "uki",
	"message": "no unified kernel image was measured",
	"subject": "section .linux (PCR 11)",
	"want": "an image with systemd-stub",
}

explanations contains {
	"id": "no-boot-menu",
	"message": "a boot loader with commands took part in this boot",
	"subject": "PCR 8",
	"got": object.get(input.pcrs, ["sha256", "8"], "not quoted"),
	"want": zero,
}
