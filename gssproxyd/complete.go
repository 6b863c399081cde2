package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"gssproxyd/conf"
	"gssproxyd/mech/reason"
)

// What shells complete, besides commands, options and files: gssproxyd completion prints their
// scripts, which ask the program. There is nobody to tell errors to.

// completeReasons completes the id of a reason.
func completeReasons(_ *cobra.Command, args []string, _ string) (list []string, _ cobra.ShellCompDirective) {
	if len(args) == 0 {
		for _, r := range reason.All {
			list = append(list, string(r.ID)+"\t"+r.Text)
		}
	}
	return list, cobra.ShellCompDirectiveNoFileComp
}

// completeServices completes the name of a service of the configuration.
func completeServices(o *options) cobra.CompletionFunc { return completeConf(o, serviceNames) }

// completeService completes the name of a service as the first argument.
func completeService(o *options) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return completeServices(o)(cmd, args, word)
	}
}

// completeCallers completes the uid of a caller that a service of the configuration is for.
func completeCallers(o *options) cobra.CompletionFunc {
	return completeConf(o, func(c *conf.Config) (list []string) {
		services := make(map[uint32][]string)
		for _, s := range c.Services {
			services[s.EUID] = append(services[s.EUID], s.Name)
		}
		for uid, names := range services {
			list = append(list, fmt.Sprintf("%d\tservice %s", uid, strings.Join(names, ", ")))
		}
		slices.Sort(list)
		return list
	})
}

// completeSockets completes the path of a socket of the configuration.
func completeSockets(o *options) cobra.CompletionFunc { return completeConf(o, (*conf.Config).Sockets) }

// completeConf completes what list finds in the configuration, as far as that can be read.
func completeConf(o *options, list func(*conf.Config) []string) cobra.CompletionFunc {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		cfg, _ := o.load(nil)
		return list(cfg.conf), cobra.ShellCompDirectiveNoFileComp
	}
}

func serviceNames(c *conf.Config) (names []string) {
	for _, s := range c.Services {
		names = append(names, s.Name)
	}
	return names
}
