package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"gssproxyd/command"
	"gssproxyd/conf"
	"gssproxyd/keystore/api"
	"gssproxyd/keystore/delivery"
)

// checked is what keystored check prints of a configuration without errors.
type checked struct {
	Backend      string         `json:"backend"`
	Name         string         `json:"name"`
	Listen       string         `json:"listen"`
	Signers      []string       `json:"signers"`
	StateDir     string         `json:"state_dir"`
	Socket       string         `json:"socket"`
	Audit        string         `json:"audit"`
	AuditFailure string         `json:"audit_failure"`
	Admins       []checkedAdmin `json:"admins"`
	Warnings     []string       `json:"warnings"`
}

type checkedAdmin struct {
	Name        string     `json:"name"`
	Certificate string     `json:"certificate,omitempty"`
	UID         *uint32    `json:"uid,omitempty"`
	Principals  []string   `json:"principals"`
	Verbs       []api.Verb `json:"verbs"`
}

// checkCommand is keystored check: read the configuration as serve would, with the certificates that
// it names, and print what it says.
func checkCommand(o *options) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "check", Short: "Read the configuration, report every error, print what is set", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := load(o.config)
			res := c.checked()
			if !asJSON {
				for _, w := range res.Warnings {
					fmt.Fprintf(command.Plain{Writer: cmd.ErrOrStderr()}, "warning: %s\n", w)
				}
			}
			if err != nil {
				return err
			}
			if c.listen != "" {
				_, err = api.OpenCertificates(c.tls, nil)
			}
			if err == nil && c.bolt == "" {
				_, err = c.etcdConfig()
			}
			if err != nil {
				errs := new(conf.Errors)
				errs.Add(conf.Problem{File: c.file, What: err.Error()})
				return errs
			}
			return command.Answer(cmd, asJSON, res, printChecked)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func (c *config) checked() *checked {
	res := &checked{Name: c.name, Listen: c.listen, Signers: []string{}, StateDir: c.stateDir, Socket: c.socket, Audit: c.audit, AuditFailure: c.auditFailure, Admins: []checkedAdmin{}, Warnings: append([]string{}, c.warnings...)}
	if res.Backend = "etcd:" + strings.Join(c.etcd.endpoints, ","); c.bolt != "" {
		res.Backend = "bolt:" + c.bolt
	}
	for _, s := range c.signers {
		res.Signers = append(res.Signers, delivery.FormatSigner(s))
	}
	if len(c.signers) == 0 {
		res.Warnings = append(res.Warnings, c.file+": there is no signer; keystored init makes a store and prints the line, and serve needs it")
	}
	for _, a := range c.admins {
		res.Admins = append(res.Admins, checkedAdmin{a.Name, a.Certificate, a.UID, append([]string{}, a.Principals...), a.Verbs})
	}
	return res
}

func printChecked(w io.Writer, c *checked) error {
	fmt.Fprintf(w, "backend = %s\nname = %s\n", c.Backend, c.Name)
	for _, one := range [][2]string{{"listen", c.Listen}, {"state_dir", c.StateDir}, {"socket", c.Socket}, {"audit", c.Audit}, {"audit_failure", c.AuditFailure}} {
		if one[1] != "" && (one[0] != "audit_failure" || c.Audit != "") {
			fmt.Fprintf(w, "%s = %s\n", one[0], one[1])
		}
	}
	for _, s := range c.Signers {
		fmt.Fprintf(w, "signer = %s\n", s)
	}
	for _, a := range c.Admins {
		var who, verbs []string
		if a.Certificate != "" {
			who = append(who, "certificate "+a.Certificate)
		}
		if a.UID != nil {
			who = append(who, fmt.Sprintf("uid %d", *a.UID))
		}
		for _, v := range a.Verbs {
			verbs = append(verbs, string(v))
		}
		fmt.Fprintf(w, "%s: %s may %s", a.Name, strings.Join(who, " and "), strings.Join(verbs, ", "))
		if len(a.Principals) > 0 {
			fmt.Fprintf(w, " with %s", strings.Join(a.Principals, ", "))
		}
		fmt.Fprintln(w)
	}
	return nil
}
