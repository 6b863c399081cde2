package keytab

// Principals returns the principals of a keytab's entries in their order, each once, with or without a key that can be used.
// name is what Open takes.
func Principals(name string) (list []string, err error) {
	path, err := filePath(name)
	if err != nil {
		return nil, err
	}
	b, _, err := readFile(path)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	entries, err := Parse(b)
	seen := make(map[string]bool)
	for _, e := range entries {
		if !seen[e.Principal] {
			seen[e.Principal] = true
			list = append(list, e.Principal)
		}
	}
	return list, err
}
