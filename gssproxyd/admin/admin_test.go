package admin

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"gssproxyd/limits"
	"gssproxyd/rpc/peer"
	"gssproxyd/rpc/rpctest"
	"gssproxyd/xdr"
)

// A procedure gets the file that a call brings; one that wants none leaves nothing open.
func TestFile(t *testing.T) {
	dir, err := os.MkdirTemp("", "admin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	failed := func(r *xdr.AdminResReload) *string { return &r.Error }
	path := filepath.Join(dir, "s")
	rpctest.StartAt(t, path, Server(Procedures{
		1: AnswerFile(failed, func(_ context.Context, _ *peer.Info, _ *None, f *os.File, _ *xdr.AdminResReload) error {
			if f == nil {
				return errors.New("no file")
			}
			defer f.Close()
			_, err := f.WriteString("here")
			return err
		}),
		2: Answer(failed, func(context.Context, *None, *xdr.AdminResReload) error { return errors.New("it wants none") }),
	}, uint32(os.Geteuid()), limits.ForProcess(), slog.New(slog.DiscardHandler)))
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, test := range []struct {
		proc xdr.AdminProc
		file *os.File
		want string
	}{{1, w, ""}, {1, nil, "no file"}, {2, w, "it wants none"}} {
		var res xdr.AdminResReload
		if err := AskWith(t.Context(), path, test.proc, new(None), test.file, &res); err != nil || res.Error != test.want {
			t.Errorf("procedure %d, file %v: %q, %v; want %q", test.proc, test.file, res.Error, err, test.want)
		}
	}
	w.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != "here" { // to the end: nobody has it any more
		t.Errorf("%q, %v", b, err)
	}
}
