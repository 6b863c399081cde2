package decode

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Fprint writes a part for people: each part a line, what is known of it below, and within.
func Fprint(w io.Writer, p *Part) { fprint(w, p, "") }

func fprint(w io.Writer, p *Part, indent string) {
	i := slices.IndexFunc(Kinds, func(d KindDoc) bool { return d.Kind == p.Kind })
	fmt.Fprintf(w, "%s%s, %d octets\n", indent, Kinds[i].Text, p.Octets)
	indent += "  "
	for _, v := range p.values {
		is := v.is
		if list, ok := is.([]string); ok {
			is = strings.Join(list, ", ")
		}
		fmt.Fprintf(w, "%s%s: %v\n", indent, strings.ReplaceAll(string(v.field), "_", " "), is)
	}
	if p.Problem != "" {
		fmt.Fprintf(w, "%sproblem: %s\n", indent, p.Problem)
	}
	for i := range p.Parts {
		fprint(w, &p.Parts[i], indent)
	}
	if p.Hint != "" {
		fmt.Fprintf(w, "%shint: %s\n", indent, p.Hint)
	}
}

// MarshalJSON implements [json.Marshaler], by the schema of docs/json.md.
func (p *Part) MarshalJSON() ([]byte, error) {
	fields := make(map[Field]any, len(p.values))
	for _, v := range p.values {
		fields[v.field] = v.is
	}
	parts := make([]*Part, len(p.Parts))
	for i := range p.Parts {
		parts[i] = &p.Parts[i]
	}
	return json.Marshal(struct {
		Kind    Kind          `json:"kind"`
		Octets  int           `json:"octets"`
		Fields  map[Field]any `json:"fields"`
		Problem string        `json:"problem,omitempty"`
		Hint    string        `json:"hint,omitempty"`
		Parts   []*Part       `json:"parts"`
	}{p.Kind, p.Octets, fields, p.Problem, p.Hint, parts})
}
