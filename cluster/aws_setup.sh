#!/usr/bin/env bash
# What cluster/aws.yaml names, in your AWS account: the bucket for runs, an image repository, a security group and the
# roles of head and workers. Prints the launcher file with your account and group filled in. Can be run again.
#
#   cluster/aws_setup.sh BUCKET [CIDR] >aws.mine.yaml     CIDR: who may use SSH; default: this machine's address
set -euo pipefail
shopt -s inherit_errexit

bucket=${1:?usage: cluster/aws_setup.sh BUCKET [CIDR]}
cidr=${2:-$(curl --fail --silent https://checkip.amazonaws.com)/32}
yaml=$(dirname "$0")/aws.yaml
AWS_REGION=$(sed -n 's/^  region: //p' "$yaml")
export AWS_REGION AWS_DEFAULT_REGION=$AWS_REGION AWS_PAGER=""
account=$(aws sts get-caller-identity --query Account --output text)

quietly() { "$@" >/dev/null 2>&1; }
say() { echo "aws_setup.sh: $*" >&2; }

make_bucket() {
  quietly aws s3api head-bucket --bucket "$bucket" || aws s3 mb "s3://$bucket" >&2
  aws s3api put-public-access-block --bucket "$bucket" --public-access-block-configuration \
    BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true
}

make_repository() {
  quietly aws ecr describe-repositories --repository-names dav-ray ||
    aws ecr create-repository --repository-name dav-ray --query repository.repositoryUri --output text >&2
}

make_group() { # prints its id
  local vpc id error
  vpc=$(aws ec2 describe-vpcs --filters Name=is-default,Values=true --query 'Vpcs[0].VpcId' --output text)
  id=$(aws ec2 describe-security-groups --filters Name=group-name,Values=dav-ray "Name=vpc-id,Values=$vpc" \
    --query 'SecurityGroups[0].GroupId' --output text)
  if [[ $id = None ]]; then
    id=$(aws ec2 create-security-group --group-name dav-ray --vpc-id "$vpc" --query GroupId --output text \
      --description 'dav_ray: SSH from its owner, everything within the cluster')
    aws ec2 authorize-security-group-ingress --group-id "$id" --protocol all --source-group "$id" >&2
  fi
  error=$(aws ec2 authorize-security-group-ingress --group-id "$id" --protocol tcp --port 22 --cidr "$cidr" 2>&1) ||
    [[ $error = *InvalidPermission.Duplicate* ]] || { say "$error"; exit 1; }
  echo "$id"
}

make_role() { # NAME POLICY: a role for EC2 and the instance profile of the same name
  quietly aws iam get-role --role-name "$1" || aws iam create-role --role-name "$1" --query Role.Arn --output text >&2 \
    --assume-role-policy-document '{"Version": "2012-10-17", "Statement": [
      {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}]}'
  aws iam put-role-policy --role-name "$1" --policy-name dav-ray --policy-document "$2"
  if ! quietly aws iam get-instance-profile --instance-profile-name "$1"; then
    aws iam create-instance-profile --instance-profile-name "$1" >&2
    aws iam add-role-to-instance-profile --instance-profile-name "$1" --role-name "$1"
  fi
}

worker_may="
  {\"Effect\": \"Allow\", \"Action\": \"s3:ListBucket\", \"Resource\": \"arn:aws:s3:::$bucket\"},
  {\"Effect\": \"Allow\", \"Action\": [\"s3:GetObject\", \"s3:PutObject\", \"s3:DeleteObject\",
    \"s3:AbortMultipartUpload\"], \"Resource\": \"arn:aws:s3:::$bucket/*\"},
  {\"Effect\": \"Allow\", \"Action\": \"ecr:GetAuthorizationToken\", \"Resource\": \"*\"},
  {\"Effect\": \"Allow\", \"Action\": [\"ecr:BatchGetImage\", \"ecr:GetDownloadUrlForLayer\",
    \"ecr:BatchCheckLayerAvailability\"], \"Resource\": \"arn:aws:ecr:$AWS_REGION:$account:repository/dav-ray\"}"
head_may="$worker_may,
  {\"Effect\": \"Allow\", \"Action\": [\"ec2:Describe*\", \"ec2:RunInstances\", \"ec2:CreateTags\"], \"Resource\": \"*\"},
  {\"Effect\": \"Allow\", \"Action\": \"ec2:TerminateInstances\", \"Resource\": \"*\",
    \"Condition\": {\"StringEquals\": {\"aws:ResourceTag/ray-cluster-name\": \"dav-ray\"}}},
  {\"Effect\": \"Allow\", \"Action\": \"ssm:GetParameters\",
    \"Resource\": \"arn:aws:ssm:$AWS_REGION::parameter/aws/service/deeplearning/*\"},
  {\"Effect\": \"Allow\", \"Action\": \"iam:PassRole\", \"Resource\": \"arn:aws:iam::$account:role/dav-ray-worker\"}"

make_bucket
make_repository
quietly aws iam create-service-linked-role --aws-service-name spot.amazonaws.com || true # there since the first spot node
make_role dav-ray-worker "{\"Version\": \"2012-10-17\", \"Statement\": [$worker_may]}"
make_role dav-ray-head "{\"Version\": \"2012-10-17\", \"Statement\": [$head_may]}"
group=$(make_group)
sed -e "s/111122223333/$account/g" -e "s/sg-0123456789abcdef0/$group/g" "$yaml"
say "image: $account.dkr.ecr.$AWS_REGION.amazonaws.com/dav-ray; runs: s3://$bucket/runs; SSH from $cidr"
