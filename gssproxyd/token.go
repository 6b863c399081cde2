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

	"gssproxyd/gssproxyd/decode"
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
			r := interposer.InitRequest{Target: target(args[0]), Cred: interposer.ServiceCred, Mech: mech.KRB5, Flags: mech.FlagInteg}
			if spnego {
				r.Mech = mech.SPNEGO
			}
			if mutual {
				r.Flags |= mech.FlagMutual
			}
			return dialogue(cmd, o, func(c *interposer.Client, in func() ([]byte, error)) error {
				s, token, err := first(cmd, func(ctx context.Context) (*interposer.SecContext, []byte, error) {
					return c.InitSecContext(ctx, r)
				})
				if err != nil {
					return err
				}
				defer s.Close()
				for {
					printToken(cmd, "", token)
					// Without mutual authentication the acceptor's answer to a negotiation says
					// nothing that is waited for here.
					if s.Established() || !mutual {
						return nil
					}
					if token, err = in(); err != nil {
						return err
					}
					if token, err = next(cmd, s, token); err != nil {
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
			return dialogue(cmd, o, func(c *interposer.Client, in func() ([]byte, error)) error {
				if err := ping(cmd, c); err != nil {
					return err // before a token is waited for
				}
				token, err := in()
				if err != nil {
					return err
				}
				s, reply, err := first(cmd, func(ctx context.Context) (*interposer.SecContext, []byte, error) {
					return c.AcceptSecContext(ctx, interposer.AcceptRequest{Token: token})
				})
				if err != nil {
					return refuse(cmd, err)
				}
				defer s.Close()
				for {
					printToken(cmd, "token: ", reply)
					if s.Established() {
						break
					}
					if token, err = in(); err != nil {
						return err
					}
					if reply, err = next(cmd, s, token); err != nil {
						return refuse(cmd, err)
					}
				}
				p, err := s.Peer()
				if err != nil {
					return err
				}
				fmt.Fprintf(out, "principal: %s\ntarget: %s\nflags: %s\n", p.Name, s.Target(), p.Flags)
				if !p.Expires.Equal(interposer.Never) {
					fmt.Fprintf(out, "lifetime: %d\n", int64(time.Until(p.Expires).Round(time.Second)/time.Second))
				}
				return nil
			})
		},
	}
}

// ping, first and next make one call each, in the time that the daemon has for an answer: to see
// whether it is there, to begin a context, and to go on with it.
func ping(cmd *cobra.Command, c *interposer.Client) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), answerTimeout)
	defer cancel()
	err := c.Ping(ctx)
	if _, there := errors.AsType[*rpc.Error](err); there {
		return nil
	}
	return err
}

func first(cmd *cobra.Command, begin func(context.Context) (*interposer.SecContext, []byte, error)) (*interposer.SecContext, []byte, error) {
	ctx, cancel := context.WithTimeout(cmd.Context(), answerTimeout)
	defer cancel()
	return begin(ctx)
}

func next(cmd *cobra.Command, s *interposer.SecContext, token []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(cmd.Context(), answerTimeout)
	defer cancel()
	return s.Step(ctx, token)
}

// refuse prints the token that tells the initiator why, if there is one, and returns the error.
func refuse(cmd *cobra.Command, err error) error {
	if refusal, ok := errors.AsType[*mech.Error](err); ok {
		printToken(cmd, "token: ", refusal.Token)
	}
	return err
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
		return interposer.Principal(s)
	}
	service, host, _ := strings.Cut(s, "@")
	return interposer.HostbasedName(service, host)
}

// dialogue runs talk with a client of the daemon and a function that reads the next token from
// standard input.
func dialogue(cmd *cobra.Command, o *options, talk func(*interposer.Client, func() ([]byte, error)) error) error {
	c := interposer.New(o.socket, interposer.Options{MaxConns: 1})
	defer c.Close()
	lines := bufio.NewScanner(cmd.InOrStdin())
	lines.Buffer(nil, base64.StdEncoding.EncodedLen(rpc.MaxRecord))
	err := talk(c, func() ([]byte, error) {
		if !lines.Scan() {
			err := lines.Err()
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
			return nil, fmt.Errorf("standard input: a token, in base64 on one line, is expected: %w", err)
		}
		token, err := decode.Base64(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("standard input: %w", err)
		}
		return token, nil
	})
	return withHint(err)
}
