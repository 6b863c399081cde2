package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gssproxyd/command"
	"gssproxyd/conf"
	"gssproxyd/gssproxyd/decode"
	"gssproxyd/keytab"
	"gssproxyd/xdr"
)

// TestHeadingsOfTroubleshooting: whoever has a word, an option's or a program's name, finds it in a
// heading.
func TestHeadingsOfTroubleshooting(t *testing.T) {
	page, err := os.ReadFile("../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	headings := strings.Join(regexp.MustCompile(`(?m)^#+ .*$`).FindAllString(string(page), -1), "\n")
	for _, word := range []string{
		"log", "explain --uid", "check", "status",
		"Apache", "mod_auth_gssapi", "curl", "sshd", "ssh\n", "PostgreSQL", "slapd", "ldapwhoami", "mount.nfs", "FreeIPA",
		"GSS_USE_PROXY", "SIGPIPE", "klist", "X-GSSPROXY", "KRB5CCNAME=MEMORY:", "KDC proxy", "https://", "version 1",
		"localauth", "idmapd.conf", "rpc.svcgssd", "LoadCredential", "ReadWritePaths", "/dev/fuse",
	} {
		if !strings.Contains(headings, word) {
			t.Errorf("no heading of docs/troubleshooting.md has %q", word)
		}
	}
}

// TestLinks: what the pages refer to is there, sections too.
func TestLinks(t *testing.T) {
	pages, err := filepath.Glob("../docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatal(pages, err)
	}
	pages = append(pages, "../README.md", "../CHANGELOG.md", "../CONTRIBUTING.md")
	notInSlug := regexp.MustCompile(`[^a-z0-9 _-]`)
	code := regexp.MustCompile("`[^`]*`")
	sections := func(page string) map[string]bool {
		all := map[string]bool{}
		text, err := os.ReadFile(page)
		if err != nil {
			t.Errorf("%v", err)
		}
		for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(string(text), -1) {
			all[strings.ReplaceAll(notInSlug.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")] = true
		}
		return all
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(code.ReplaceAllString(string(text), ""), -1) {
			file, section, _ := strings.Cut(m[1], "#")
			if strings.Contains(file, "://") {
				continue
			}
			target := page
			if file != "" {
				target = filepath.Join(filepath.Dir(page), file)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %v", page, err)
			} else if section != "" && !sections(target)[section] {
				t.Errorf("%s: %s has no section #%s", page, target, section)
			}
		}
	}
}

// TestJSONPage: docs/json.md has the fields and ids that commands print, and no others.
func TestJSONPage(t *testing.T) {
	page, err := os.ReadFile("../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for _, s := range strings.Split(string(page), "\n## ")[1:] {
		name, text, _ := strings.Cut(s, "\n")
		sections[strings.Trim(name, "`")] = text
	}
	var lint, decoded []string
	lint = append(jsonFields("files", reflect.TypeFor[[]keytab.Report]()), "files")
	for _, d := range keytab.Findings {
		lint = append(lint, fmt.Sprintf("%s` | %s | %s |", d.ID, d.Severity, d.Text))
	}
	for _, d := range decode.Kinds {
		decoded = append(decoded, fmt.Sprintf("%s` | %s |", d.Kind, d.Text))
	}
	for _, d := range decode.Fields {
		decoded = append(decoded, fmt.Sprintf("%s` | %s |", d.Field, d.Text))
	}
	p := decode.Token([]byte{0x60})
	text, err := json.Marshal(&p)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(text, &fields); err != nil || fields["problem"] == nil || fields["hint"] == nil {
		t.Fatal(err, string(text))
	}
	decoded = append(decoded, "tokens")
	for f := range fields {
		decoded = append(decoded, "tokens[]."+f)
	}
	wants := map[string][]string{"keytab lint": lint, "decode": decoded}
	for name, of := range map[string]reflect.Type{
		"keytabs":             reflect.TypeFor[xdr.AdminResKeytabs](),
		"audit verify":        reflect.TypeFor[command.Verified](),
		"keytab list":         reflect.TypeFor[keytabList](),
		"status":              reflect.TypeFor[wellness](),
		"clients":             reflect.TypeFor[xdr.AdminResClients](),
		"denials":             reflect.TypeFor[xdr.AdminResDenials](),
		"caller":              reflect.TypeFor[xdr.AdminCaller](),
		"reload":              reflect.TypeFor[xdr.AdminResReload](),
		"debug":               reflect.TypeFor[xdr.AdminResDebug](),
		"explain":             reflect.TypeFor[xdr.AdminResExplain](),
		"explain --principal": reflect.TypeFor[xdr.AdminResPrincipal](),
		"explain REASON":      reflect.TypeFor[meaning](),
		"selftest":            reflect.TypeFor[xdr.AdminResSelftest](),
	} {
		for _, f := range jsonFields("", of) {
			if f != ".error" && f != ".daemon.error" { // then nothing is printed
				wants[name] = append(wants[name], f[1:])
			}
		}
	}
	delete(sections, "Files") // which package fuse is held to
	for name := range sections {
		if wants[name] == nil {
			t.Errorf("docs/json.md: no command is held to its section %q", name)
		}
	}
	for name, want := range wants {
		rows := regexp.MustCompile("(?m)^\\| `(.*)$").FindAllStringSubmatch(sections[name], -1)
		for _, m := range rows {
			id, _, _ := strings.Cut(m[1], "`")
			if !slices.Contains(want, id) && !slices.Contains(want, m[1]) {
				t.Errorf("docs/json.md describes %s of %s, which the program does not have, or otherwise", id, name)
			}
		}
		if len(rows) != len(want) {
			t.Errorf("docs/json.md: %s: %d rows, want %d: %q", name, len(rows), len(want), want)
		}
	}
}

// jsonFields are the fields of a type as JSON, with those of what is in them, as docs/json.md names
// them.
func jsonFields(path string, t reflect.Type) (all []string) {
	for t.Kind() == reflect.Slice || t.Kind() == reflect.Pointer {
		if t.Kind() == reflect.Slice {
			path += "[]"
		}
		t = t.Elem()
	}
	caller := t == reflect.TypeFor[xdr.AdminCaller]() && path != "" // which has a section of its own
	if t.Kind() != reflect.Struct || caller || t.Implements(reflect.TypeFor[json.Marshaler]()) {
		return nil
	}
	for f := range t.Fields() {
		name, _, tagged := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous:
			all = append(all, jsonFields(path, f.Type)...)
		case tagged || name != "":
			all = append(all, path+"."+name)
			all = append(all, jsonFields(path+"."+name, f.Type)...)
		}
	}
	return all
}

// TestPermissionsPage: the configurations on docs/permissions.md mean something, and are without a
// warning.
func TestPermissionsPage(t *testing.T) {
	page, err := os.ReadFile("../docs/permissions.md")
	if err != nil {
		t.Fatal(err)
	}
	users := conf.FixedGroups{FixedUsers: conf.FixedUsers{"apache": 48}, Groups: map[string]uint32{"backup": 34}}
	blocks := regexp.MustCompile(`(?m)(?:^    .*\n|\n)+`).FindAllString(string(page), -1)
	found := 0
	for _, block := range blocks {
		if !strings.Contains(block, "[service/") {
			continue
		}
		found++
		file := filepath.Join(t.TempDir(), "gssproxy.conf")
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(block, "\n    ", "\n")), 0o644); err != nil {
			t.Fatal(err)
		}
		c, err := conf.Load(conf.Source{File: file, Users: users})
		if err != nil {
			t.Error(err)
			continue
		}
		if len(c.Warnings) > 0 || !c.Restricts(c.Services[0]) && len(c.Services[0].Units) == 0 {
			t.Errorf("%v\n%s", c.Warnings, block)
		}
	}
	if found != 2 {
		t.Errorf("%d configurations", found)
	}
}
