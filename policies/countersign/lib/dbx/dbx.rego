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
# description: The contents of dbx are authenticated (facts of the boot), and it holds at least `min_entries` certificates, hashes and others.
# custom:
#   check: dbx-entries
passed contains "dbx-entries" if {
	count(lists) == 1
	every list in lists {
		list.strength == "authenticated"
		entries(list.value) >= settings.dbx.min_entries
	}
}

lists contains list if {
	some list in input.boot.facts.databases
	list.value.name == "dbx"
}

entries(database) := (count(database.certificates) + database.hashes) + database.other

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
	"got": concat(", ", {sprintf("%v entries (%s)", [entries(list.value), list.strength]) | some list in lists}),
	"want": "at least settings.dbx.min_entries entries",
	"hint": "fwupdmgr update, then reboot",
}
