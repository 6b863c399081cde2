package etype

import (
	"fmt"
	"io"
	"log/slog"
)

const redacted = "[redacted]"

// Secret is bytes that must not be printed: keys, sealed state, passwords. Every way of formatting,
// marshalling or logging one says "[redacted]". A struct that keeps a Secret in an unexported field
// must embed [Redacted] or be a [fmt.Formatter] itself, since fmt does not call methods of such
// fields; nor does it for a verb that cannot apply, %p of a struct.
type Secret []byte

// String returns "[redacted]".
func (Secret) String() string { return redacted }

// GoString returns "[redacted]".
func (Secret) GoString() string { return redacted }

// Format writes "[redacted]" for every verb and flag.
func (Secret) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// MarshalJSON returns "[redacted]" as a JSON string.
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// MarshalText returns "[redacted]".
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue returns "[redacted]".
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// Zero overwrites the bytes.
func (s Secret) Zero() { clear(s) }

// Redacted is embedded in a struct that keeps secrets in unexported fields: fmt then prints all of
// it as "[redacted]".
type Redacted struct{}

// Format writes "[redacted]" for every verb and flag.
func (Redacted) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }
