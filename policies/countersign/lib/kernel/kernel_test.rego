package countersign.lib.kernel_test

import data.countersign.lib.kernel

line := "/vmlinuz root=/dev/sda1 ro quiet lockdown=integrity"

command := {"index": 1, "pcr": 8, "type": "EV_IPL", "digests": {}, "authentic": true, "text": concat("", ["linux ", line])}

good := {"boot": {"events": [command]}}

fact(text, strength) := {"value": {"by": "grub", "text": text}, "strength": strength, "log": "firmware", "events": [1]}

facts := {"boot": {"events": [], "facts": {"command_lines": [fact(line, "authenticated")]}}}

exact := {"kernel": {"command_lines": [line], "required_words": ["lockdown=integrity"]}}

words := {"kernel": {"words": ["/vmlinuz*", "root=*", "ro", "quiet", "lockdown=integrity"]}}

test_exact if {
	kernel.passed == {"kernel-command-line", "kernel-words"} with input as good with data.countersign.settings as exact
	kernel.passed == {"kernel-command-line", "kernel-words"} with input as facts with data.countersign.settings as exact
}

test_words if kernel.passed == {"kernel-command-line"} with input as good with data.countersign.settings as words

test_debug_word if {
	bad := {"boot": {"events": [object.union(command, {"text": "linux /vmlinuz root=/dev/sda1 ro quiet init=/bin/sh"})]}}
	kernel.passed == set() with input as bad with data.countersign.settings as words
	kernel.passed == set() with input as bad with data.countersign.settings as exact
}

test_second_line if {
	second := object.union(command, {"text": "linux /vmlinuz rescue"})
	bad := {"boot": {"events": [command, second]}}
	not "kernel-command-line" in kernel.passed with input as bad with data.countersign.settings as words
}

test_only_authentic_text_counts if {
	kernel.passed == set() with input as {"boot": {"events": [object.union(command, {"authentic": false})]}} with data.countersign.settings as exact
}

test_a_line_that_is_only_named_proves_nothing if {
	named := {"boot": {"events": [], "facts": {"command_lines": [fact(line, "named")]}}}
	kernel.passed == set() with input as named with data.countersign.settings as exact
	beside := {"boot": {"events": [command], "facts": {"command_lines": [fact(line, "named")]}}}
	kernel.passed == {"kernel-command-line", "kernel-words"} with input as beside with data.countersign.settings as exact
	other := {"boot": {"events": [command], "facts": {"command_lines": [fact("/vmlinuz init=/bin/sh", "named")]}}}
	kernel.passed == set() with input as other with data.countersign.settings as exact
}

test_no_settings if kernel.passed == set() with input as good with data.countersign.settings as {}

test_no_input if kernel.passed == set() with input as {} with data.countersign.settings as exact
