package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"gssproxyd/keystore/api"
)

// TestJSON holds docs/keystore.md to what is asked, answered and printed.
func TestJSON(t *testing.T) {
	page, err := os.ReadFile("../docs/keystore.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string][]string{}
	name := ""
	for line := range strings.Lines(string(page)) {
		if head, ok := strings.CutPrefix(line, "##"); ok {
			name = strings.Trim(head, "# `\n")
		}
		if m := regexp.MustCompile("^\\| `([^`]*)` \\| [^|]*\\|$").FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			sections[name] = append(sections[name], m[1])
		}
	}
	watch := slices.Concat(fields("", reflect.TypeFor[api.Watch]()), fields("", reflect.TypeFor[api.Watched]()))
	for section, want := range map[string][]string{
		"How to ask":           fields("", reflect.TypeFor[api.Refusal]()),
		"POST /v1/watch":       watch,
		"POST /v1/acknowledge": fields("", reflect.TypeFor[api.Marked]()),
		"GET /v1/list":         fields("", reflect.TypeFor[api.Listed]()),
		"import":               fields("", reflect.TypeFor[api.ImportRequest]()),
		"imported":             fields("", reflect.TypeFor[api.Imported]()),
		"policy":               fields("", reflect.TypeFor[api.PolicyRequest]()),
		"changed":              fields("", reflect.TypeFor[api.Marked]()),
		"history":              fields("", reflect.TypeFor[api.HistoryShown]()),
		"list":                 fields("", reflect.TypeFor[api.EntriesShown]()),
		"show":                 fields("", reflect.TypeFor[api.Shown]()),
		"host":                 fields("", reflect.TypeFor[api.HostShown]()),
		"keyring":              fields("", reflect.TypeFor[api.KeyringShown]()),
		"keystored import":     fields("", reflect.TypeFor[imported]()),
		"keystored check":      fields("", reflect.TypeFor[checked]()),
		"keystored backup":     fields("", reflect.TypeFor[backedUp]()),
		"keystored restore":    fields("", reflect.TypeFor[restored]()),
		"keystored init":       fields("", reflect.TypeFor[created]()),
		"keystored recipient":  fields("", reflect.TypeFor[recipientShown]()),

		"signer":                   fields("", reflect.TypeFor[api.SignerShown]()),
		"keystored recovery new":   fields("", reflect.TypeFor[recoveryMade]()),
		"keystored recovery grant": fields("", reflect.TypeFor[recoveryGranted]()),
	} {
		if got := sections[section]; !slices.Equal(got, want) {
			t.Errorf("docs/keystore.md, %s:\n%q, want\n%q", section, got, want)
		}
	}
	for _, v := range api.Verbs {
		if !strings.Contains(string(page), "| `"+string(v)+"` |") {
			t.Errorf("docs/keystore.md does not have the verb %s", v)
		}
	}
}

// fields are those of a type as JSON, with those of what is in them.
func fields(path string, t reflect.Type) (all []string) {
	for t.Kind() == reflect.Slice || t.Kind() == reflect.Pointer {
		if t.Kind() == reflect.Slice && t != reflect.TypeFor[[]byte]() && t != reflect.TypeFor[json.RawMessage]() {
			path += "[]"
		}
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == reflect.TypeFor[time.Time]() {
		return nil
	}
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous:
			all = append(all, fields(path, f.Type)...)
		case f.IsExported():
			inner := strings.TrimPrefix(path+"."+name, ".")
			all = append(append(all, inner), fields(inner, f.Type)...)
		}
	}
	return all
}

// TestManual holds docs/keystored.8 to the commands and options that there are, and
// docs/keystored.conf.5 to the keys.
func TestManual(t *testing.T) {
	page, err := os.ReadFile("../docs/keystored.8")
	if err != nil {
		t.Fatal(err)
	}
	described := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\.It (?:Fl .*?, )?Fl -?([a-z-]+)`).FindAllStringSubmatch(string(page), -1) {
		described["--"+m[1]] = true
	}
	for _, m := range regexp.MustCompile(`(?m)^\.It Cm ([a-z ]+?)(?: Ar| Op| Fl|$)`).FindAllStringSubmatch(string(page), -1) {
		described[strings.TrimSpace(strings.ReplaceAll(m[1], " Cm ", " "))] = true
	}
	has := map[string]bool{}
	var visit func(path string, c *cobra.Command)
	visit = func(path string, c *cobra.Command) {
		for _, set := range []*pflag.FlagSet{c.Flags(), c.PersistentFlags()} {
			set.VisitAll(func(f *pflag.Flag) { has["--"+f.Name] = true })
		}
		for _, sub := range c.Commands() {
			if sub.Name() == "completion" || sub.Name() == "help" {
				continue
			}
			name := strings.TrimSpace(path + " " + sub.Name())
			if !sub.HasSubCommands() {
				has[name] = true
			}
			visit(name, sub)
		}
	}
	root := rootCommand(new(options))
	root.InitDefaultVersionFlag()
	visit("", root)
	for name := range has {
		if !described[name] {
			t.Errorf("docs/keystored.8 does not describe %s", name)
		}
	}
	for name := range described {
		if !has[name] {
			t.Errorf("docs/keystored.8 describes %s, which there is not", name)
		}
	}

	page, err = os.ReadFile("../docs/keystored.conf.5")
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, m := range regexp.MustCompile(`(?m)^\.It Ic ([a-z_]+)`).FindAllStringSubmatch(string(page), -1) {
		keys = append(keys, m[1])
	}
	var want []string
	for _, k := range slices.Concat(new(config).keys(), adminKeys(new(api.Admin)), realmKeys(new(realm))) {
		want = append(want, k.Name)
	}
	if !slices.Equal(keys, want) {
		t.Errorf("docs/keystored.conf.5 has\n%q, want\n%q", keys, want)
	}
}

// checkDisk holds docs/on-disk.md to what a run that serves has on disk: each file is in the table,
// with that mode, and each in the table is there but those that are only there while they are written.
func (p *program) checkDisk() {
	p.t.Helper()
	page, err := os.ReadFile("../docs/on-disk.md")
	if err != nil {
		p.t.Fatal(err)
	}
	modes := map[string]string{} // by the file's pattern
	for _, m := range regexp.MustCompile("(?m)^\\| `(/[a-z]+/[a-z]+/keystored/[^`]+|/run/keystored/[^`]+|BACKUP)` \\|.*\\| (0[0-7]{3}) \\|$").FindAllStringSubmatch(string(page), -1) {
		modes[strings.TrimPrefix(m[1], "/")] = m[2]
	}
	found := map[string]bool{}
	for _, top := range []string{"var", "run", "BACKUP"} {
		err := fs.WalkDir(os.DirFS(p.dir), top, func(name string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			known := false
			for pattern, mode := range modes {
				if ok, _ := filepath.Match(pattern, name); ok {
					known, found[pattern] = true, true
					if got := fmt.Sprintf("%#04o", info.Mode().Perm()); got != mode {
						p.t.Errorf("%s has mode %s; docs/on-disk.md says %s", name, got, mode)
					}
				}
			}
			if !known {
				p.t.Errorf("%s: docs/on-disk.md does not know that file", name)
			}
			return nil
		})
		if err != nil {
			p.t.Error(err)
		}
	}
	for pattern := range modes {
		if !found[pattern] && !strings.HasPrefix(filepath.Base(pattern), ".") {
			p.t.Errorf("docs/on-disk.md has %s, which is not there", pattern)
		}
	}
	if len(found) == 0 {
		p.t.Error("docs/on-disk.md has no file of keystored's")
	}
}
