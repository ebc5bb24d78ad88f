# METADATA
# title: Kernel command line
# description: |
#   Settings: `data.countersign.settings.kernel.command_lines` (whole lines that are accepted), `.words` (patterns, `*` stands for anything:
#   a line is accepted when each of its words matches one of them) and `.required_words`.
# scope: package
package countersign.lib.kernel

import data.countersign.settings

# METADATA
# title: Command lines that this boot is known to have used
# description: |
#   From authenticated facts of the boot, and from every authentic GRUB command `linux` (PCR 8), without `linux` itself.
proved contains fact.value.text if {
	some fact in input.boot.facts.command_lines
	fact.strength == "authenticated"
}

proved contains line if {
	some event in input.boot.events
	event.pcr == 8
	event.type == "EV_IPL"
	event.authentic == true
	some prefix in ["linux ", "linuxefi "]
	startswith(event.text, prefix)
	line := trim_prefix(event.text, prefix)
}

# METADATA
# title: Command lines to be accepted
# description: Those, and lines that the log only names as such. These prove nothing, but may not be anything either.
lines := proved | {fact.value.text | some fact in input.boot.facts.command_lines}

# METADATA
# title: kernel-command-line
# description: The command line is known, and every one that the boot used is accepted.
# custom:
#   check: kernel-command-line
passed contains "kernel-command-line" if {
	count(proved) > 0
	every line in lines {
		accepted(line)
	}
}

# METADATA
# title: kernel-words
# description: Every word of `required_words` stands in every command line that the boot used.
# custom:
#   check: kernel-words
passed contains "kernel-words" if {
	count(proved) > 0
	count(settings.kernel.required_words) > 0
	every line in lines {
		every word in settings.kernel.required_words {
			word in split(line, " ")
		}
	}
}

accepted(line) if line in settings.kernel.command_lines

accepted(line) if {
	count(settings.kernel.words) > 0
	every word in split(line, " ") {
		known_word(word)
	}
}

known_word(word) if {
	some pattern in settings.kernel.words
	glob.match(pattern, [], word)
}

explanations contains {
	"id": "kernel-command-line",
	"message": "the kernel's command line is not accepted",
	"subject": "kernel command line (PCR 8, 9 or 12)",
	"got": shown,
	"want": "a line of settings.kernel.command_lines, or only words of settings.kernel.words",
}

explanations contains {
	"id": "kernel-words",
	"message": "the kernel's command line lacks a required word",
	"subject": "kernel command line (PCR 8, 9 or 12)",
	"got": shown,
	"want": concat(" ", settings.kernel.required_words),
}

shown := concat(" | ", lines)
