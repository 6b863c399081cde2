package api

import (
	"slices"
	"strings"
)

// A Verb is what an administrator may be let do.
type Verb string

// The verbs, each for the procedures that its name says. Disable is also to enable again.
const (
	Import  Verb = "import"
	Policy  Verb = "policy"
	Rotate  Verb = "rotate"
	Disable Verb = "disable"
	Delete  Verb = "delete"
	History Verb = "history"
	Show    Verb = "show"
	List    Verb = "list"
	Hosts   Verb = "hosts"
	Master  Verb = "master"
)

// Verbs are all of them.
var Verbs = []Verb{Import, Policy, Rotate, Disable, Delete, History, Show, List, Hosts, Master}

// An Admin is an administrator and what he may do. Root, and the user that the store runs as, may do
// all over the socket.
type Admin struct {
	Name        string  // of the section in the configuration
	Certificate string  // the DNS or URI name in the certificate; empty: none
	UID         *uint32 // over the socket; nil: none
	Principals  []string
	Verbs       []Verb
}

// permits reports whether an administrator may do something; principal is empty if it is about none.
func (a *Admin) permits(verb Verb, principal string) bool {
	return slices.Contains(a.Verbs, verb) && (principal == "" || slices.ContainsFunc(a.Principals, func(p string) bool { return matches(p, principal) }))
}

// matches reports whether s is what a pattern says, in which a * stands for any characters.
func matches(pattern, s string) bool {
	first, rest, more := strings.Cut(pattern, "*")
	if !more {
		return s == pattern
	}
	if !strings.HasPrefix(s, first) {
		return false
	}
	s = s[len(first):]
	parts := strings.Split(rest, "*")
	for _, part := range parts[:len(parts)-1] {
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s = s[i+len(part):]
	}
	return strings.HasSuffix(s, parts[len(parts)-1])
}
