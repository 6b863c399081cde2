// Package logs is how the daemon's log is written: as text, as JSON, or as entries of systemd's
// journal, with a field for each attribute. It knows nothing of what is logged.
//
// All three say the same of a value, what [slog.TextHandler] says: a type that does not print its
// secrets does not in any of them.
package logs

import (
	"encoding"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	sd "github.com/coreos/go-systemd/v22/journal"
)

// The formats.
const (
	text    = "text"
	inJSON  = "json"
	journal = "journal"
)

// New returns a handler of the format text, json or journal; no format is text. Text and JSON are
// lines that are written to w. The journal's entries go to journald, and what that does not take at
// once is text on the standard error.
func New(format string, w io.Writer, level slog.Leveler) (slog.Handler, error) {
	switch format {
	case "", text:
		return slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}), nil
	case inJSON:
		return slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: printed}), nil
	case journal:
		if err := reach(journalSocket); err != nil {
			return nil, fmt.Errorf("log format %s: no journal is there: %w; write text or json, or start systemd-journald", format, err)
		}
		return newJournal(journalSocket, os.Stderr, level)
	}
	return nil, fmt.Errorf("log format %q: write text, json or journal", format)
}

// OfStderr is the format for the standard error: the journal's if that is where it leads.
func OfStderr() string {
	if leads, err := sd.StderrIsJournalStream(); err != nil || !leads || reach(journalSocket) != nil {
		return text
	}
	return journal
}

func reach(socket string) error {
	c, err := net.Dial("unixgram", socket)
	if err != nil {
		return err
	}
	return c.Close()
}

// printed has JSON say what text does: of a value with fields what it prints, not the fields.
func printed(_ []string, a slog.Attr) slog.Attr {
	if k := a.Value.Kind(); k == slog.KindAny || k == slog.KindDuration {
		a.Value = slog.StringValue(textOf(a.Value))
	}
	return a
}

// textOf is a resolved value, as text without quotes.
func textOf(v slog.Value) (s string) {
	switch v.Kind() {
	case slog.KindTime:
		return v.Time().Format("2006-01-02T15:04:05.000Z07:00")
	case slog.KindAny:
		if b, ok := v.Any().([]byte); ok {
			return string(b)
		}
		if m, ok := v.Any().(encoding.TextMarshaler); ok {
			defer func() { // a nil pointer, for one; fmt does the same for its methods
				if p := recover(); p != nil {
					s = fmt.Sprintf("!PANIC: %v", p)
				}
			}()
			b, err := m.MarshalText()
			if err != nil {
				return "!ERROR: " + err.Error()
			}
			return string(b)
		}
		return fmt.Sprintf("%+v", v.Any())
	}
	return v.String()
}

// needsQuotes reports whether a value would not be seen for one word.
func needsQuotes(s string) bool {
	return s == "" || strings.ContainsAny(s, ` ="`) || !printable(s)
}

// printable reports whether s is text of one line that shows what it is.
func printable(s string) bool {
	for _, r := range s {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}
