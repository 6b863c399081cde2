package main

import (
	"encoding/json"
	"io"
)

// printJSON prints one object, of a schema in docs/json.md.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
