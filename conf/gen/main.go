// Command gen writes the manual gssproxyd.conf(5) from the tables of package conf. It runs in the
// directory of that package: go generate ./conf
package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"os"
	"strings"
	"text/template"

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

// text is the page in mdoc(7), but for what the tables say.
//
//go:embed gssproxyd.conf.5.tmpl
var text string

// section is what the page says about one section.
type section struct {
	Name, About  string
	Options, Old []conf.Option // Old are no longer read
}

// manual returns the page.
func manual() []byte {
	sections := []section{
		{Name: conf.DaemonSection, About: "The daemon itself.\nAll keys may be missing."},
		{Name: conf.ServiceSection, About: "One section for every service.\nAt least one is needed, and their order matters.\n" +
			"NAME is what logs call the service."},
		{Name: conf.StoreSection, About: "One section for every key store that this host gets keys from,\nsee\n.Pa keystore.md .\n" +
			"NAME is what cred_store calls it, of letters, digits, hyphens, underscores and full stops.\n" +
			"Two stores may have keys of one principal:\nwhich ones a service uses is said by its cred_store, and never by a caller."},
	}
	for i := range sections {
		s := &sections[i]
		for _, o := range conf.Options {
			switch {
			case o.Section != s.Name:
			case o.Instead != "":
				s.Old = append(s.Old, o)
			default:
				s.Options = append(s.Options, o)
			}
		}
	}
	var b bytes.Buffer
	page := template.New("page").Funcs(template.FuncMap{"notes": notes, "prose": prose, "quote": quote})
	err := template.Must(page.Parse(text)).Execute(&b, map[string]any{
		"MainFile": conf.MainFile, "DropInDir": conf.DropInDir, "Sections": sections, "Reasons": reason.Match,
	})
	if err != nil {
		panic(err) // the template's own fault
	}
	return b.Bytes()
}

// notes says what kind of option it is.
func notes(o conf.Option) string {
	s := o.Type
	switch {
	case o.Required:
		s += "; required"
	case o.Default != "":
		s += "; default " + o.Default
	default:
		s += "; not set by default"
	}
	if o.Repeat {
		s += "; may be repeated"
	}
	return s
}

// quote makes one macro argument of s.
func quote(s string) string {
	if strings.Contains(s, " ") {
		return `"` + prose(s) + `"`
	}
	return prose(s)
}

// prose makes roff text of plain text: one sentence a line, `literal` words in bold, and nothing
// that roff would take for a request or an escape.
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
