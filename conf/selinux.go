package conf

import "strings"

// seContext is an SELinux context taken apart.
type seContext struct {
	user, role, typ string
	mls             string // the range, "" if there is none
}

// parseContext takes user:role:type or user:role:type:range, as context_new(3) does: the range may
// have more colons, and only it may have blanks. Labels of other security modules are not contexts.
func parseContext(s string) (seContext, bool) {
	if n := strings.Count(s, ":"); n < 2 || n > 5 {
		return seContext{}, false
	}
	var c seContext
	c.user, s, _ = strings.Cut(s, ":")
	c.role, s, _ = strings.Cut(s, ":")
	c.typ, c.mls, _ = strings.Cut(s, ":")
	for _, part := range [...]string{c.user, c.role, c.typ} {
		if strings.ContainsAny(part, " \t\r\n") {
			return seContext{}, false
		}
	}
	return c, !strings.ContainsAny(c.mls, "\t\r\n")
}

// equal compares as the C daemon does: the range counts if both have one.
func (c seContext) equal(d seContext) bool {
	return c.user == d.user && c.role == d.role && c.typ == d.typ &&
		(c.mls == "" || d.mls == "" || c.mls == d.mls)
}
