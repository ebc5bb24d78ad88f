# METADATA
# title: Revocation list (dbx)
# description: |
#   Settings: `data.countersign.settings.dbx.digests`, accepted digests of the measured variable dbx, and `.dbx.min_entries`.
# scope: package
package countersign.lib.dbx

import data.countersign.settings

# METADATA
# title: dbx-current
# description: |
#   The variable dbx was measured exactly once, and its SHA-256 digest is accepted.
# custom:
#   check: dbx-current
passed contains "dbx-current" if {
	count(measured) == 1
	every event in measured {
		event.digests.sha256 in settings.dbx.digests
	}
}

# METADATA
# title: dbx-entries
# description: dbx holds at least as many entries as `min_entries` (facts of the boot).
# custom:
#   check: dbx-entries
passed contains "dbx-entries" if input.boot.facts.dbx_entries >= settings.dbx.min_entries

measured contains event if {
	some event in input.boot.events
	event.pcr == 7
	event.type == "EV_EFI_VARIABLE_DRIVER_CONFIG"
	event.authentic == true
	startswith(event.text, "dbx = ")
}

explanations contains {
	"id": "dbx-current",
	"message": "the list of revoked boot loaders is not an accepted one",
	"subject": "variable dbx (PCR 7)",
	"got": concat(", ", {event.digests.sha256 | some event in measured}),
	"want": "a digest of settings.dbx.digests",
	"hint": "fwupdmgr update, then reboot",
}

explanations contains {
	"id": "dbx-entries",
	"message": "the list of revoked boot loaders is too short",
	"subject": "variable dbx (PCR 7)",
	"want": "at least settings.dbx.min_entries entries",
	"hint": "fwupdmgr update, then reboot",
}
