package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gssproxyd/conf"
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
		"localauth", "idmapd.conf", "rpc.svcgssd", "LoadCredential", "ReadWritePaths",
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
