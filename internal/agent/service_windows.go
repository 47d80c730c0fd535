package agent

import (
	"context"

	"sft/internal/api"
)

// runServices does nothing: accounts of Windows act as no service user.
func (a *Agent) runServices(context.Context, *api.Client, []byte) {}
