package keytab

// Principals returns the principals of a keytab's entries in their order, each once, with or without a key that can be used.
// name is what Open takes.
func Principals(name string) (list []string, err error) {
	entries, content, err := readEntries(name)
	defer clear(content)
	seen := make(map[string]bool)
	for _, e := range entries {
		if !seen[e.Principal] {
			seen[e.Principal] = true
			list = append(list, e.Principal)
		}
	}
	return list, err
}
