package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"gssproxyd/command"
	"gssproxyd/gssproxyd/decode"
)

// decodeCommand is gssproxyd decode: what a token is made of. It needs no daemon, and has no keys.
func decodeCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "decode [FILE]",
		Short: "Say what a token is made of, as far as no key is needed",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return errors.New("decode: one file is expected, or none for standard input; a token itself goes there")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			name, in := "standard input", cmd.InOrStdin()
			if len(args) > 0 && args[0] != "-" {
				name = args[0]
				f, err := os.Open(name)
				if err != nil {
					return fmt.Errorf("decode: %w; a token itself is read from standard input", err)
				}
				defer f.Close()
				in = f
			}
			input, err := io.ReadAll(io.LimitReader(in, decode.MaxInput+1))
			if err == nil && len(input) > decode.MaxInput {
				err = fmt.Errorf("it has more than %d bytes, which no token has", decode.MaxInput)
			}
			var tokens [][]byte
			if err == nil {
				tokens, err = decode.Tokens(input)
			}
			if err != nil {
				return fmt.Errorf("decode: %s: %w", name, err)
			}
			return printTokens(cmd, tokens, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func printTokens(cmd *cobra.Command, tokens [][]byte, asJSON bool) error {
	out := cmd.OutOrStdout()
	whole := true
	parts := make([]*decode.Part, len(tokens))
	for i, t := range tokens {
		p := decode.Token(t)
		parts[i] = &p
		whole = whole && p.Whole()
		if !asJSON {
			decode.Fprint(out, &p)
		}
	}
	if asJSON {
		if err := command.PrintJSON(out, struct {
			Tokens []*decode.Part `json:"tokens"`
		}{parts}); err != nil {
			return err
		}
	}
	if !whole {
		return command.Unwell
	}
	return nil
}
