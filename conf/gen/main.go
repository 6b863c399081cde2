// Command gen writes the manual gssproxyd.conf(5) from the tables of package
// conf. It runs in the directory of that package: go generate ./conf
package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"gssproxyd/conf"
	"gssproxyd/mech/reason"
)

const page = "../docs/gssproxyd.conf.5"

func main() {
	if err := os.WriteFile(page, manual(), 0o666); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

// manual returns the page in mdoc(7).
func manual() []byte {
	var b bytes.Buffer
	b.WriteString(head)
	fmt.Fprintf(&b, files, conf.MainFile, conf.DropInDir)
	b.WriteString(syntax)
	section(&b, conf.DaemonSection, "The daemon itself.\nAll keys may be missing.")
	section(&b, conf.ServiceSection, "One section for every service.\nAt least one is needed, and their order matters.\n"+
		"NAME is what logs call the service.")
	b.WriteString(substitutions)
	b.WriteString(matching)
	b.WriteString(refusals)
	b.WriteString(".Bl -tag -width Ds\n")
	for _, r := range reason.Match {
		fmt.Fprintf(&b, ".It Sy %s\n%s.\nHint: %s.\n", r.ID, prose(r.Text), prose(r.Hint))
	}
	b.WriteString(".El\n")
	b.WriteString(compatibility)
	b.WriteString(tail)
	return b.Bytes()
}

// section writes the options of one section as a list.
func section(b *bytes.Buffer, name, text string) {
	title := name
	if name == conf.ServiceSection {
		title = "service/NAME"
	}
	fmt.Fprintf(b, ".Sh [%s]\n%s\n.Bl -tag -width Ds\n", title, text)
	var old []conf.Option
	for _, o := range conf.Options {
		if o.Section != name {
			continue
		}
		if o.Instead != "" {
			old = append(old, o)
			continue
		}
		notes := []string{o.Type}
		switch {
		case o.Required:
			notes = append(notes, "required")
		case o.Default != "":
			notes = append(notes, "default "+o.Default)
		default:
			notes = append(notes, "not set by default")
		}
		if o.Repeat {
			notes = append(notes, "may be repeated")
		}
		fmt.Fprintf(b, ".It Sy %s\n.Pq %s\n.br\n%s\n", quote(o.Key), prose(strings.Join(notes, "; ")), prose(o.Text))
	}
	b.WriteString(".El\n")
	if len(old) > 0 {
		b.WriteString(".Pp\nOld names that are errors, and what to write instead:\n.Bl -tag -width Ds -compact\n")
		for _, o := range old {
			fmt.Fprintf(b, ".It Sy %s\n.Ql %s\n", quote(o.Key), prose(o.Instead))
		}
		b.WriteString(".El\n")
	}
}

// quote makes one macro argument of s.
func quote(s string) string {
	if strings.Contains(s, " ") {
		return `"` + prose(s) + `"`
	}
	return prose(s)
}

// prose makes roff text of plain text: one sentence a line, `literal` words in
// bold, and nothing that roff would take for a request or an escape.
func prose(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "\n\n", "\n.Pp\n", ". ", ".\n", ": ", ":\n").Replace(s)
	for strings.Count(s, "`") > 1 {
		s = strings.Replace(s, "`", `\fB`, 1)
		s = strings.Replace(s, "`", `\fR`, 1)
	}
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if l != ".Pp" && (strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'")) {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}
