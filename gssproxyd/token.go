package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gssproxyd/interposer"
	"gssproxyd/mech"
	"gssproxyd/rpc"
)

// The two ends of a context for shells. They are clients like any other: the daemon sees their user
// and program, and its configuration decides what they get.
//
// Tokens are lines of base64. init prints them bare; accept prints lines of "key: value".

// answerTimeout is how long the daemon may take for one answer, which may be waiting for a KDC
// itself.
const answerTimeout = time.Minute

// initCommand is gssproxyd init.
func initCommand(o *options) *cobra.Command {
	var spnego, mutual bool
	cmd := &cobra.Command{
		Use:   "init TARGET",
		Short: "Print a token for a service, such as HTTP@www.example.com",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("init: one target is expected: a service at a host, such as HTTP@www.example.com, " +
					"or a principal, such as HTTP/www.example.com@EXAMPLE.COM")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			r := interposer.InitRequest{Target: target(args[0]), Mech: mech.KRB5, Flags: mech.FlagInteg}
			if spnego {
				r.Mech = mech.SPNEGO
			}
			if mutual {
				r.Flags |= mech.FlagMutual
			}
			return dialogue(cmd, o, func(ctx context.Context, c *interposer.Client, in func() ([]byte, error)) error {
				for {
					step, cancel := context.WithTimeout(ctx, answerTimeout)
					i, err := c.InitSecContext(step, r)
					cancel()
					if err != nil {
						return err
					}
					printToken(cmd, "", i.Token)
					// Without mutual authentication the acceptor's answer to a negotiation says
					// nothing that is waited for here.
					if i.Context.Open() || !mutual {
						return i.Context.Close()
					}
					r.Context = i.Context
					if r.Token, err = in(); err != nil {
						return err
					}
				}
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&spnego, "spnego", false, "make a token of SPNEGO, as HTTP wants it")
	f.BoolVar(&mutual, "mutual", false, "read the answer and check that it is the service's")
	return cmd
}

// acceptCommand is gssproxyd accept.
func acceptCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "accept",
		Short: "Read a token from standard input and say whose it is",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return errors.New("accept takes no arguments: the token is read from standard input")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			return dialogue(cmd, o, func(ctx context.Context, c *interposer.Client, in func() ([]byte, error)) error {
				var r interposer.AcceptRequest
				for {
					var err error
					if r.Token, err = in(); err != nil {
						return err
					}
					step, cancel := context.WithTimeout(ctx, answerTimeout)
					a, err := c.AcceptSecContext(step, r)
					cancel()
					if refusal, ok := errors.AsType[*mech.Error](err); ok {
						printToken(cmd, "token: ", refusal.Token)
					}
					if err != nil {
						return err
					}
					printToken(cmd, "token: ", a.Token)
					if r.Context = a.Context; !r.Context.Open() {
						continue
					}
					defer r.Context.Close()
					p, err := r.Context.Peer()
					if err != nil {
						return err
					}
					fmt.Fprintf(out, "principal: %s\ntarget: %s\nflags: %s\n", p.Name, r.Context.Target(), interposer.FlagNames(p.Flags))
					if !p.Expires.IsZero() {
						fmt.Fprintf(out, "lifetime: %d\n", int64(time.Until(p.Expires).Round(time.Second)/time.Second))
					}
					return nil
				}
			})
		},
	}
}

// printToken prints a token if there is one.
func printToken(cmd *cobra.Command, label string, token []byte) {
	if len(token) > 0 {
		fmt.Fprintf(cmd.OutOrStdout(), "%s%s\n", label, base64.StdEncoding.EncodeToString(token))
	}
}

// target is a name as users write it: service@host, or a principal, which has a slash.
func target(s string) interposer.Name {
	if strings.Contains(s, "/") {
		return interposer.Name{Display: s, Type: mech.NTKrb5Principal}
	}
	return interposer.Name{Display: s, Type: mech.NTHostbased}
}

// dialogue runs talk with a client of the daemon and a function that reads the next token from
// standard input.
func dialogue(cmd *cobra.Command, o *options, talk func(context.Context, *interposer.Client, func() ([]byte, error)) error) error {
	ctx := cmd.Context()
	dial, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	c, err := interposer.Dial(dial, o.socket, interposer.Options{MaxConns: 1})
	if err != nil {
		return withHint(err)
	}
	defer c.Close()
	lines := bufio.NewScanner(cmd.InOrStdin())
	lines.Buffer(nil, base64.StdEncoding.EncodedLen(rpc.MaxRecord))
	err = talk(ctx, c, func() ([]byte, error) {
		if !lines.Scan() {
			err := lines.Err()
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
			return nil, fmt.Errorf("standard input: a token, in base64 on one line, is expected: %w", err)
		}
		token, err := base64.StdEncoding.DecodeString(strings.TrimSpace(lines.Text()))
		if err != nil {
			return nil, fmt.Errorf("standard input: the token is not base64: %w", err)
		}
		return token, nil
	})
	return withHint(err)
}
