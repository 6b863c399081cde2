package krb5

import (
	"gssproxyd/mech"
	"gssproxyd/mech/krb5/etype"
)

// Layout chooses the form of the one part of an exported context that differs between MIT releases.
type Layout int

const (
	// LayoutAny imports on MIT krb5 1.18 and all later releases. On 1.19 and later an imported acceptor
	// context counts 2 seconds of clock skew into its lifetime instead of 300.
	LayoutAny Layout = iota
	// LayoutCanonical is what MIT krb5 1.19 and later write; 1.18 refuses it.
	LayoutCanonical
)

// imported is the token an imported context came from.
type imported struct {
	token etype.Secret
}

// AppendExport appends the token gss_import_sec_context of MIT krb5 makes a context of.
func (c *Context) AppendExport(dst []byte, l Layout) []byte { return dst }

// ImportContext makes a context of a token of gss_export_sec_context.
func ImportContext(token []byte) (*Context, error) {
	return nil, &mech.Error{Major: mech.Unavailable}
}
