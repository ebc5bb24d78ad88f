# METADATA
# title: Clock and resets
# description: |
#   Settings: `data.countersign.settings.clock.max_skipped_resets`, `.not_before_ms` and `.not_after_ms` (milliseconds since 1970).
#   The verifier itself refuses counters and clocks that go back. `clock-safe` stays false for up to an hour after a power cut: ask for it
#   only where that is meant.
# scope: package
package countersign.lib.clock

import data.countersign.settings

# METADATA
# title: resets-seen
# description: At most `max_skipped_resets` TPM Resets went by unattested since the last accepted attestation.
# custom:
#   check: resets-seen
passed contains "resets-seen" if {
	is_number(input.quote.skipped_resets)
	input.quote.skipped_resets <= settings.clock.max_skipped_resets
}

# METADATA
# title: clock-safe
# description: The TPM says that its clock cannot have gone back (TPMS_CLOCK_INFO.safe).
# custom:
#   check: clock-safe
passed contains "clock-safe" if input.quote.safe == true

# METADATA
# title: time-window
# description: The decision falls between `not_before_ms` and `not_after_ms`, so reference values expire.
# custom:
#   check: time-window
passed contains "time-window" if {
	input.time_ms >= settings.clock.not_before_ms
	input.time_ms < settings.clock.not_after_ms
}

explanations contains {
	"id": "resets-seen",
	"message": "the host was reset without an attestation in between",
	"got": sprintf("%v skipped resets", [input.quote.skipped_resets]),
	"want": "at most settings.clock.max_skipped_resets",
	"hint": "verifier host admit HOST, if the restarts were meant",
}

explanations contains {
	"id": "clock-safe",
	"message": "the TPM's clock may have gone back",
	"want": "safe = YES",
	"hint": "wait until the TPM has saved its clock (up to an hour after a power cut)",
}

explanations contains {
	"id": "time-window",
	"message": "these settings are not valid at this time",
	"got": input.time,
	"want": "settings.clock.not_before_ms to settings.clock.not_after_ms",
	"hint": "build and load a newer policy",
}
