package main

import (
	"bufio"
	"encoding/base64"
	"io"
	"strings"
	"testing"

	"gssproxyd/interposer/interposertest"
	"gssproxyd/mech"
)

// tokenCommand runs the program against a fake daemon.
func tokenCommand(t *testing.T, d *interposertest.Daemon, in io.Reader, out io.Writer, args ...string) error {
	t.Helper()
	root := rootCommand(&options{})
	root.SetArgs(append(args, "-s", d.Socket))
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(io.Discard)
	root.SilenceErrors, root.SilenceUsage = true, true
	return root.ExecuteContext(t.Context())
}

func TestInitAndAccept(t *testing.T) {
	for _, tt := range []struct {
		args   []string
		target string
		flags  string
		answer bool
	}{
		{[]string{"HTTP@www.example.test"}, "HTTP@www.example.test", "integrity, transferable", false},
		{[]string{"--mutual", "HTTP/www.example.test@EXAMPLE.TEST"}, "HTTP/www.example.test@EXAMPLE.TEST", "mutual, integrity, transferable", true},
		{[]string{"--spnego", "HTTP@www.example.test"}, "HTTP@www.example.test", "integrity, transferable", true},
		{[]string{"--spnego", "--mutual", "HTTP@www.example.test"}, "HTTP@www.example.test", "mutual, integrity, transferable", true},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			d := interposertest.Start(t)
			answers, toInit := io.Pipe()
			tokens, fromInit := io.Pipe()
			done := make(chan error, 1)
			go func() {
				err := tokenCommand(t, d, answers, fromInit, append([]string{"init"}, tt.args...)...)
				fromInit.CloseWithError(err)
				answers.Close() // who answers nevertheless is not left waiting
				done <- err
			}()
			lines := bufio.NewReader(tokens)
			token, err := lines.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			if err := tokenCommand(t, d, strings.NewReader(token), &out, "accept"); err != nil {
				t.Fatal(err)
			}
			said := out.String()
			if answer, rest, ok := strings.Cut(strings.TrimPrefix(said, "token: "), "\n"); tt.answer && ok {
				said = rest
				io.WriteString(toInit, answer+"\n")
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			want := "principal: alice@EXAMPLE.TEST\ntarget: " + tt.target + "\nflags: " + tt.flags + "\nlifetime: 3" // of an hour, less what this took
			if !strings.HasPrefix(said, want) {
				t.Errorf("%s, want %s", said, want)
			}
		})
	}
}

// The other end is told why it is refused, and so is who runs the program.
func TestRefusedToken(t *testing.T) {
	d := interposertest.Start(t)
	broken := interposertest.Token("alice@EXAMPLE.TEST", "HTTP@www.example.test", mech.FlagMutual, true)
	var out strings.Builder
	err := tokenCommand(t, d, strings.NewReader(base64.StdEncoding.EncodeToString(broken)+"\n"), &out, "accept")
	if err == nil || !strings.HasPrefix(err.Error(), "[clock-skew] Clock skew too great\nhint: ") {
		t.Errorf("%v", err)
	}
	if want := "token: " + base64.StdEncoding.EncodeToString([]byte("KRB-ERROR")) + "\n"; out.String() != want {
		t.Errorf("%s, want %s", out.String(), want)
	}
}
